//! The workload on plain memory: what it fills and touches verifies, and nothing else does.

use crate::abi;
use crate::disk::{Failure, Layout};
use crate::params::Params;
use crate::pattern::{Pattern, WORDS, mix};
use crate::platform::Platform;
use crate::workload::Worker;

#[derive(Default)]
struct Fake {
    tsc: u64,
    work: u64,
    command: u32,
    result: Option<u32>,
    ready: bool,
    said: String,
}

impl Platform for Fake {
    fn tsc(&mut self) -> u64 {
        self.tsc += 500;
        self.tsc
    }
    fn heartbeat(&mut self, work: u64) {
        self.work = work;
    }
    fn command(&mut self) -> u32 {
        std::mem::take(&mut self.command)
    }
    fn sleep_us(&mut self, us: u32) {
        self.tsc += u64::from(us);
    }
    fn verified(&mut self, result: u32) {
        self.result = Some(result);
    }
    fn ready(&mut self) {
        self.ready = true;
    }
    fn registers_intact(&mut self) -> bool {
        true
    }
    fn mmio_read32(&mut self, _: u64) -> u32 {
        u32::MAX
    }
    fn mmio_write32(&mut self, _: u64, _: u32) {}
    fn disk_beat(&mut self, _: u64) {}
    fn disk_failed(&mut self, failure: &Failure) {
        self.said.push_str(&failure.to_string());
    }
}

struct Rig {
    memory: Vec<[u64; 512]>,
    params: Params,
    fake: Fake,
}

impl Rig {
    fn new(line: &str) -> Self {
        let params = Params::parse(format!("{line} ws-mib=1 fill-mib=2 tsc-khz=1000").as_bytes());
        let pages = params.arena_pages() as usize + 1;
        let mut rig = Self {
            memory: vec![[0; 512]; pages],
            params,
            fake: Fake::default(),
        };
        rig.steps(40);
        assert!(rig.fake.ready);
        rig
    }

    fn data(&mut self) -> *mut u8 {
        let at = self.memory.as_mut_ptr().cast::<u8>();
        // SAFETY: one page more than needed was allocated.
        unsafe { at.add(at.align_offset(4096)) }
    }

    fn steps(&mut self, n: u32) {
        let (arena, params) = (self.data(), self.params);
        // SAFETY: the memory outlives the worker, which is alone.
        let mut worker = unsafe { Worker::new(arena, params, 0) };
        for _ in 0..n {
            worker.step(&mut self.fake);
        }
    }

    fn verify(&mut self) -> u32 {
        self.fake.command = abi::COMMAND_VERIFY;
        self.fake.result = None;
        self.steps(12);
        self.fake.result.expect("verified")
    }

    fn flip(&mut self, page: u64, byte: u64) {
        let at = (self.params.data_offset() + page * 4096 + byte) as usize;
        // SAFETY: a filled page.
        unsafe { *self.data().add(at) ^= 1 };
    }
}

const KINDS: [&str; 5] = ["idle", "dense", "sparse", "readmostly", "rewrite-same"];

#[test]
fn every_workload_verifies_before_and_after_work() {
    for kind in KINDS {
        let mut rig = Rig::new(&format!("workload={kind}"));
        assert_eq!(rig.verify(), abi::VERIFY_OK, "{kind}");
        rig.steps(50);
        assert_eq!(rig.verify(), abi::VERIFY_OK, "{kind}");
    }
}

#[test]
fn every_class_of_content_verifies() {
    for fill in ["100:0:0", "0:100:0", "0:0:100", "0:0:0:100", "25:25:25:25"] {
        let mut rig = Rig::new(&format!("workload=dense fill={fill}"));
        rig.steps(50);
        assert_eq!(rig.verify(), abi::VERIFY_OK, "{fill}");
        rig.flip(300, 77);
        assert_eq!(rig.verify(), 301, "{fill}");
    }
}

fn words(line: &str, page: u64) -> Vec<u64> {
    let mut pattern = Pattern::of(&Params::parse(line.as_bytes()), page);
    (0..WORDS).map(|_| pattern.next_word()).collect()
}

#[test]
fn pages_without_structs_are_what_they_were_before_there_were_any() {
    for (line, sum) in [
        ("fill=30:40:30 seed=1", 0x7c63_951c_1fdd_147a),
        ("fill=0:0:100 seed=7", 0x6189_b767_7b6e_a5aa),
        ("fill=0:100:0 seed=2", 0x19e2_51d6_1ce3_b9da),
    ] {
        let all = (0..40).flat_map(|page| words(line, page));
        assert_eq!(all.fold(0, |sum, word| mix(sum ^ word)), sum, "{line}");
    }
}

#[test]
fn shares_are_read_leniently() {
    let shares = |fill: &str| {
        let p = Params::parse(format!("fill={fill}").as_bytes());
        (p.zero, p.text, p.structs)
    };
    assert_eq!(shares("30:40:30"), (30, 40, 0));
    assert_eq!(shares("30:30:15:25"), (30, 30, 25));
    assert_eq!(shares("0:0:0:100"), (0, 0, 100));
    assert_eq!(shares("60:60:60:60"), (60, 40, 0));
    assert_eq!(shares("10:20:0:99"), (10, 20, 70));
    assert_eq!(shares(":::x"), (0, 0, 0));
    assert_eq!(shares("80"), (80, 0, 0));
}

#[test]
fn each_class_has_about_its_share_of_pages() {
    let line = "fill=30:30:15:25 seed=3";
    let (mut zero, mut structs) = (0, 0);
    for page in 0..4000 {
        let words = words(line, page);
        zero += u32::from(words.iter().all(|&w| w == 0));
        structs += u32::from(words[0] >> 32 == 0x7f3a);
    }
    assert!((1100..1300).contains(&zero), "{zero}");
    assert!((900..1100).contains(&structs), "{structs}");
}

#[test]
fn structs_are_pointers_that_stay_close_small_numbers_and_a_clock() {
    let mut clock = 0;
    for page in 0..20 {
        for record in words("fill=0:0:0:100 seed=9", page).chunks(8) {
            let [to_record, to_buffer, counts, length, time, ..] = *record else {
                unreachable!("eight words");
            };
            assert_eq!(to_record >> 40, 0x7f);
            assert_eq!((to_record % 64, to_buffer % 16), (0, 0));
            assert_eq!(to_record >> 20, to_buffer >> 20);
            assert!(counts & 0xffff_ffff < 4096 && (counts >> 32).is_power_of_two());
            let (length, room) = (length & 0xffff_ffff, length >> 32);
            assert!(length <= room && room < 4096);
            assert!(time > clock && time >> 56 == 0);
            clock = time;
            assert_eq!(record[5..7], [0, 0]);
            assert!(record[7].to_le_bytes()[0].is_ascii_lowercase());
        }
    }
}

#[test]
fn any_rate_holds_over_a_second() {
    for rate in [1, 7, 999, 1000, 1001, 1999, 123_457] {
        for beat_ms in [1, 10] {
            let line = format!("workload=dense rate={rate} beat-ms={beat_ms}");
            let mut rig = Rig::new(&line);
            let before = rig.fake.work;
            // A step of work is from one heartbeat to the next.
            rig.steps(1000 / beat_ms);
            assert_eq!(rig.fake.work - before, rate, "{line}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_its_page_named() {
    let mut rig = Rig::new("workload=idle");
    for i in 0..200u64 {
        let r = mix(i);
        let (page, byte) = (r % 512, (r >> 32) % 4096);
        rig.flip(page, byte);
        assert_eq!(u64::from(rig.verify()), page + 1, "byte {byte}");
        rig.flip(page, byte);
    }
    assert_eq!(rig.verify(), abi::VERIFY_OK);
}

#[test]
fn an_old_page_is_found() {
    for kind in ["dense", "sparse"] {
        let mut rig = Rig::new(&format!("workload={kind}"));
        let at = (rig.params.data_offset() + 7 * 4096) as usize;
        // SAFETY: a filled page.
        let old = unsafe { rig.data().add(at).cast::<[u8; 4096]>().read() };
        rig.steps(50);
        // The command is taken at the end of a step of work: what is put back after it is not
        // written over before it is verified.
        rig.fake.command = abi::COMMAND_VERIFY;
        rig.steps(1);
        // SAFETY: as above.
        unsafe { rig.data().add(at).cast::<[u8; 4096]>().write(old) };
        rig.steps(12);
        assert_eq!(rig.fake.result, Some(8), "{kind}");
    }
}

/// Bytes beyond the arena on both sides, which must stay as they are.
const GUARD: usize = 4 << 20;

/// A word of a garbled arena.
fn garbage(r: u64) -> u64 {
    match r % 8 {
        0 => 0,
        1 => u64::MAX,
        2 => r >> 60,
        3 => 256 + (r >> 61),
        4 => i64::MAX as u64,
        _ => r,
    }
}

#[test]
fn a_garbled_arena_is_never_left() {
    let disks = [
        "",
        "disk-depth=5 disk-mib=1 disk-overlap=50",
        "disk-depth=64 disk-mib=1",
    ];
    for (kind, vcpus, disk) in KINDS
        .iter()
        .flat_map(|&k| disks.iter().flat_map(move |&d| [(k, 1, d), (k, 3, d)]))
    {
        let line = format!(
            "workload={kind} ws-mib=1 fill-mib=2 stride=7 vcpus={vcpus} tsc-khz=1000 {disk}"
        );
        let params = Params::parse(line.as_bytes());
        let len = params.arena_pages() as usize * 4096;
        let mut memory = vec![0xa5u8; len + 2 * GUARD + 4096];
        let base = memory.as_mut_ptr();
        let start = GUARD + base.align_offset(4096);
        // SAFETY: inside the allocation, by its size.
        let arena = unsafe { base.add(start) };
        let disk_words = params.disk_offset() as usize / 8..params.data_offset() as usize / 8;
        let seeds = if disk.is_empty() { 60 } else { 12 };
        for seed in 0..seeds {
            let words = (0..512).chain(disk_words.clone().filter(|_| !disk.is_empty()));
            for word in words {
                let value = garbage(mix(seed << 32 | word as u64));
                // SAFETY: the page of states, and what the disk's driver has.
                unsafe { arena.cast::<u64>().add(word).write(value) };
            }
            // SAFETY: the disk's phase: it is up.
            unsafe { arena.add(1024).cast::<u32>().write(1) };
            let mut fake = Fake {
                command: abi::COMMAND_VERIFY + (seed & 1) as u32,
                ..Fake::default()
            };
            for index in 0..vcpus {
                // SAFETY: the memory outlives the worker; one at a time.
                let mut worker = unsafe { Worker::new(arena, params, index) };
                for n in 0..14 {
                    // SAFETY: the page of states: this driver's queue is not given up.
                    unsafe {
                        arena
                            .add(2048 + 256 * index as usize + 15 * 8)
                            .cast::<u64>()
                            .write(0)
                    };
                    if n % 3 == 0 {
                        garble_used(arena, &params, index, seed);
                    }
                    worker.step(&mut fake);
                }
            }
        }
        let (before, rest) = memory.split_at(start);
        assert!(before.iter().all(|&b| b == 0xa5), "{kind}");
        assert!(rest[len..].iter().all(|&b| b == 0xa5), "{kind}");
    }
}

/// Has a disk that is there no more say what it likes came back: something for each slot.
fn garble_used(arena: *mut u8, params: &Params, index: u32, seed: u64) {
    let Some(layout) = Layout::of(params) else {
        return;
    };
    let part = params.disk_offset() + layout.part(index.into());
    // SAFETY: the used ring, which has a page, and the driver's index in the page of states.
    unsafe {
        let used = arena.add(part as usize + 8192);
        let seen = arena
            .add(2048 + 256 * index as usize + 7 * 8)
            .cast::<u64>()
            .read() as u16;
        for slot in 0..params.disk_depth as usize {
            let place =
                usize::from(seen.wrapping_add(slot as u16)) % usize::from(layout.queue_size());
            let at = used.add(4 + 8 * place).cast::<u32>();
            at.write_unaligned(3 * (slot as u32 ^ (seed as u32 & 1)));
            at.add(1).write_unaligned(4097);
        }
        used.add(2).cast::<u16>().write(seen.wrapping_add(2));
    }
}

#[test]
fn without_a_disk_the_driver_says_so() {
    let mut rig = Rig::new("workload=dense disk-depth=4");
    assert!(
        rig.fake.said.contains("there is no disk"),
        "{}",
        rig.fake.said
    );
    assert_eq!(rig.verify(), abi::VERIFY_DISK);
    rig.flip(3, 9);
    assert_eq!(rig.verify(), 4, "what is wrong with RAM comes first");
}

#[test]
fn the_payload_is_an_elf() {
    assert_eq!(&crate::PAYLOAD[..4], b"\x7fELF");
}
