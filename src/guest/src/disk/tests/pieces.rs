//! Layout, parameters, stamps and words.

use crate::disk::ledger::Entry;
use crate::disk::stamp::{SECTORS, Stamp, differs, fill, inspect, poison};
use crate::disk::{Counters, Failure, Fault, Layout};
use crate::params::Params;
use crate::pattern::mix;

fn params(line: &str) -> Params {
    Params::parse(line.as_bytes())
}

#[test]
fn parameters_are_read_and_kept_in_bounds() {
    let p =
        params("disk-depth=32 disk-mib=3 disk-write=70 disk-flush=9 disk-rate=500 disk-overlap=15");
    assert_eq!((p.disk_depth, p.disk_blocks, p.disk_write), (32, 768, 70));
    assert_eq!((p.disk_flush, p.disk_rate, p.disk_overlap), (9, 500, 15));
    let p = params("disk-depth=999 disk-mib=0 disk-write=101 disk-overlap=9999");
    assert_eq!((p.disk_depth, p.disk_blocks), (64, 256));
    assert_eq!((p.disk_write, p.disk_overlap), (100, 100));
    let p = params("");
    assert_eq!((p.disk_depth, p.disk_blocks, p.disk_write), (0, 4096, 50));
    assert_eq!((p.disk_flush, p.disk_rate, p.disk_overlap), (64, 0, 0));
}

#[test]
fn parts_follow_each_other_and_the_data_follows_them() {
    assert_eq!(Layout::of(&params("disk-mib=99")), None);
    assert_eq!(params("ws-mib=2").data_offset(), 2 << 20);
    for depth in 1..=64u64 {
        for vcpus in [1, 3, 8] {
            let p = params(&format!(
                "disk-depth={depth} vcpus={vcpus} disk-mib=5 ws-mib=2"
            ));
            let layout = Layout::of(&p).expect("a disk");
            let size = (6 + depth) * 4096;
            for index in 0..vcpus {
                assert_eq!(layout.part(index), index * size);
            }
            assert_eq!(layout.ledger(), vcpus * size);
            assert_eq!(
                layout.bytes(),
                vcpus * size + 1280 * size_of::<Entry>() as u64
            );
            let queue = u64::from(layout.queue_size());
            assert!((3 * depth..=256).contains(&queue) && queue.is_power_of_two());
            assert_eq!(p.disk_offset(), 4096 + 512 * 4 + 2048);
            assert!(p.data_offset() >= p.disk_offset() + layout.bytes());
            assert!(p.data_offset().is_multiple_of(2 << 20));
        }
    }
    // The largest that can be asked for does not overflow.
    let p = params("disk-depth=64 vcpus=8 disk-mib=99999999999999999999 fill-mib=99999999999");
    assert!(p.arena_pages() < 1 << 40);
}

#[test]
fn counters_are_read_only_where_they_are() {
    let mut page = vec![0u8; 4096];
    for n in 0..4u8 {
        page[2048 + 256 * 7 + 8 * usize::from(n)] = n + 1;
    }
    let counters = Counters {
        reads: 1,
        writes: 2,
        flushes: 3,
        errors: 4,
    };
    assert_eq!(Counters::of(&page, 7), Some(counters));
    assert_eq!(Counters::of(&page, 0), Some(Counters::default()));
    assert_eq!(Counters::of(&page, 8), None);
    assert_eq!(Counters::of(&page, u32::MAX), None);
    assert_eq!(Counters::of(&[], 0), None);
}

#[test]
fn every_flipped_bit_of_a_block_is_seen() {
    let stamp = Stamp {
        nonce: 77,
        block: 1234,
        generation: 5,
        vcpu: 3,
    };
    let mut block = [0u64; 512];
    // SAFETY: a block.
    unsafe { fill(block.as_mut_ptr(), &stamp) };
    let wrong = |block: &[u64; 512]| {
        (0..SECTORS).find(|&sector| {
            // SAFETY: a block.
            let found = unsafe { inspect(block.as_ptr(), sector) };
            differs(&stamp, sector, &found).is_some() || found.stamp != stamp
        })
    };
    assert_eq!(wrong(&block), None);
    for i in 0..4096 {
        let (word, bit) = ((i / 8) as usize, mix(i) % 64);
        block[word] ^= 1 << bit;
        assert_eq!(wrong(&block), Some(word / 64), "word {word} bit {bit}");
        block[word] ^= 1 << bit;
    }
    let half = block;
    // SAFETY: a block.
    unsafe { poison(block.as_mut_ptr()) };
    assert_eq!(wrong(&block), Some(0));
    block[..256].copy_from_slice(&half[..256]);
    assert_eq!(wrong(&block), Some(4));
}

#[test]
fn failures_are_words() {
    let text = |fault| Failure { vcpu: 2, fault }.to_string();
    let mut entry = Entry::default();
    entry.issue().expect("room");
    assert_eq!(
        text(Fault::Stale {
            block: 9,
            sector: 1,
            allowed: entry.read(),
            found: 7
        }),
        "disk: vCPU 2: block 9 sector 1: generation 7 found, expected 0 1"
    );
    assert_eq!(
        text(Fault::NoDisk { found: u32::MAX }),
        "disk: vCPU 2: there is no disk (0xffffffff found): give the machine one, or disk-depth=0"
    );
}
