//! A virtio block device over MMIO as a driver sees it, in memory, which does wrong what it is
//! told to do wrong. A request takes effect and comes back at separate, random times.

use super::plan::{Fault, Plan};
use crate::abi::{ARENA_GPA, DISK_MMIO_BASE};
use crate::pattern::mix;

pub(super) const BLOCK: usize = 4096;

/// Registers that tests may falsify.
pub(super) const MAGIC: u64 = 0x000;
pub(super) const STATUS: u64 = 0x070;

#[derive(Clone, Debug, Default)]
struct Ring {
    size: u16,
    ready: u32,
    addresses: [u64; 3],
    seen: u16,
    used: u16,
}

/// A request that the device has taken.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) kind: u32,
    pub(super) block: usize,
    data: u64,
    status: u64,
    /// What it read or is to write; filled when it takes effect.
    content: Vec<u8>,
    done: bool,
    failed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    arena: *mut u8,
    arena_bytes: u64,
    registers: std::collections::HashMap<u64, u32>,
    /// What a register reads as, whatever was written.
    pub(super) falsified: Vec<(u64, u32)>,
    pub(super) features: [u32; 2],
    rings: Vec<Ring>,
    pub(super) disk: Vec<u8>,
    /// What each block held before it was last written.
    before: Vec<Vec<u8>>,
    pub(super) pending: Vec<Request>,
    pub(super) plan: Plan,
    random: u64,
    /// Requests of these blocks stay in flight.
    pub(super) stuck: Vec<usize>,
    pub(super) no_notify: bool,
    pub(super) notified: u32,
    pub(super) taken: u32,
    pub(super) deepest: usize,
    pub(super) together: usize,
}

impl Model {
    pub(super) fn new(blocks: usize, queues: usize) -> Self {
        Self {
            arena: std::ptr::null_mut(),
            arena_bytes: 0,
            registers: std::collections::HashMap::new(),
            falsified: Vec::new(),
            features: [1 << 9 | 1 << 12 | 1 << 6, 1],
            rings: vec![Ring::default(); queues],
            disk: vec![0xee; blocks * BLOCK],
            before: vec![vec![0xdd; BLOCK]; blocks],
            pending: Vec::new(),
            plan: Plan::default(),
            random: 99,
            stuck: Vec::new(),
            no_notify: false,
            notified: 0,
            taken: 0,
            deepest: 0,
            together: 0,
        }
    }

    /// Where the guest's arena is now.
    pub(super) fn attach(&mut self, arena: *mut u8, bytes: u64) {
        (self.arena, self.arena_bytes) = (arena, bytes);
    }

    fn dice(&mut self, n: u64) -> u64 {
        self.random = mix(self.random);
        self.random % n
    }

    fn at(&self, gpa: u64, len: u64) -> *mut u8 {
        let offset = gpa.checked_sub(ARENA_GPA).expect("in the arena");
        assert!(offset + len <= self.arena_bytes, "{gpa:#x} is outside");
        // SAFETY: inside the arena, as checked.
        unsafe { self.arena.add(offset as usize) }
    }

    fn get<T>(&self, gpa: u64) -> T {
        // SAFETY: inside the arena; numbers only.
        unsafe {
            self.at(gpa, size_of::<T>() as u64)
                .cast::<T>()
                .read_unaligned()
        }
    }

    fn put<T>(&self, gpa: u64, value: T) {
        let at = self.at(gpa, size_of::<T>() as u64).cast::<T>();
        // SAFETY: inside the arena.
        unsafe { at.write_unaligned(value) }
    }

    fn copy_in(&self, gpa: u64, bytes: &[u8]) {
        let at = self.at(gpa, bytes.len() as u64);
        // SAFETY: inside the arena.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
    }

    fn register(&self, register: u64) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    pub(super) fn read(&self, addr: u64) -> u32 {
        let at = addr - DISK_MMIO_BASE;
        if let Some(&(_, value)) = self.falsified.iter().find(|f| f.0 == at) {
            return value;
        }
        let ring = self.rings.get(self.register(0x30) as usize);
        match at {
            MAGIC => 0x7472_6976,
            0x004 | 0x008 => 2,
            0x010 => self.features[self.register(0x14) as usize],
            0x034 => ring.map_or(0, |_| 256),
            0x044 => ring.map_or(0, |r| r.ready),
            0x100 => (self.disk.len() / 512) as u32,
            0x120 => (self.rings.len() as u32) << 16,
            STATUS => self.register(STATUS),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, addr: u64, value: u32) {
        let at = addr - DISK_MMIO_BASE;
        self.registers.insert(at, value);
        let index = self.register(0x30) as usize;
        let Some(ring) = self.rings.get_mut(index) else {
            return;
        };
        let half = |whole: u64, high: bool| match high {
            true => whole & 0xffff_ffff | u64::from(value) << 32,
            false => whole & !0xffff_ffff | u64::from(value),
        };
        match at {
            0x038 => {
                assert!(value.is_power_of_two() && value <= 256);
                ring.size = value as u16;
            }
            0x044 => ring.ready = value,
            0x080 | 0x084 => ring.addresses[0] = half(ring.addresses[0], at & 4 != 0),
            0x090 | 0x094 => ring.addresses[1] = half(ring.addresses[1], at & 4 != 0),
            0x0a0 | 0x0a4 => ring.addresses[2] = half(ring.addresses[2], at & 4 != 0),
            0x050 => {
                self.notified += 1;
                self.take(value as usize);
            }
            _ => {}
        }
    }

    /// Takes what is new in a queue.
    fn take(&mut self, queue: usize) {
        assert_eq!(self.register(STATUS), 15, "the driver is not done");
        let ring = self.rings[queue].clone();
        let [descriptors, available, used] = ring.addresses;
        assert_eq!(self.get::<u16>(available), 1, "no interrupts");
        self.put(used, u16::from(self.no_notify));
        let index: u16 = self.get(available + 2);
        let mut seen = ring.seen;
        while seen != index {
            let head: u16 = self.get(available + 4 + 2 * u64::from(seen % ring.size));
            let request = self.parse(queue, descriptors, head);
            assert!(
                !self
                    .pending
                    .iter()
                    .any(|r| r.queue == queue && r.head == head),
                "head {head} is in flight"
            );
            if request.kind != 4 {
                let same = |r: &&Request| {
                    r.kind != 4 && r.block == request.block && r.kind + request.kind > 0
                };
                let others = self.pending.iter().filter(same).count();
                self.together = self.together.max(others);
            }
            self.pending.push(request);
            self.taken += 1;
            seen = seen.wrapping_add(1);
        }
        self.rings[queue].seen = seen;
        let of_queue = self.pending.iter().filter(|r| r.queue == queue).count();
        self.deepest = self.deepest.max(of_queue);
    }

    fn parse(&self, queue: usize, descriptors: u64, head: u16) -> Request {
        let descriptor = |n: u16| -> (u64, u32, u16, u16) {
            let at = descriptors + 16 * u64::from(n);
            (
                self.get(at),
                self.get(at + 8),
                self.get(at + 12),
                self.get(at + 14),
            )
        };
        let (header, len, flags, mut next) = descriptor(head);
        assert_eq!((len, flags), (16, 1));
        let kind: u32 = self.get(header);
        let sector: u64 = self.get(header + 8);
        let (mut data, mut content) = (0, Vec::new());
        if kind != 4 {
            let (at, len, flags, status) = descriptor(next);
            assert_eq!((len, flags), (4096, if kind == 0 { 3 } else { 1 }));
            (data, next) = (at, status);
            content = vec![0; BLOCK];
        }
        let (status, len, flags, _) = descriptor(next);
        assert_eq!((len, flags), (1, 2));
        assert!(sector.is_multiple_of(8));
        Request {
            queue,
            head,
            kind,
            block: (sector / 8) as usize,
            data,
            status,
            content,
            done: false,
            failed: false,
        }
    }

    /// Time passes: some requests take effect, some come back.
    pub(super) fn turn(&mut self) {
        if self.no_notify {
            // It looks by itself.
            for queue in 0..self.rings.len() {
                self.take(queue);
            }
        }
        for _ in 0..self.pending.len() {
            let n = self.dice(self.pending.len() as u64 + 1) as usize;
            let Some(request) = self.pending.get(n) else {
                continue;
            };
            if request.kind != 4 && self.stuck.contains(&request.block) {
                continue;
            }
            if request.done {
                let request = self.pending.swap_remove(n);
                self.come_back(request);
            } else {
                self.take_effect(n);
            }
        }
        if let Some((block, content)) = self.plan.late() {
            self.block_mut(block).copy_from_slice(&content);
        }
    }

    fn block_mut(&mut self, block: usize) -> &mut [u8] {
        &mut self.disk[block * BLOCK..][..BLOCK]
    }

    fn take_effect(&mut self, n: usize) {
        let mut request = self.pending[n].clone();
        request.done = true;
        request.failed = self.dice(100) < self.plan.errors;
        let fault = self.plan.effect(
            &request,
            self.disk.get(request.block * BLOCK) != Some(&0xee),
        );
        match (request.kind, fault) {
            (4, _) => {}
            (0, Some(Fault::StaleRead)) => request.content = self.before[request.block].clone(),
            (0, Some(Fault::OtherBlock)) => {
                let other = (request.block + 1) % self.before.len();
                request.content = self.block_mut(other).to_vec();
            }
            (0, _) => request.content = self.block_mut(request.block).to_vec(),
            (_, Some(Fault::LostWrite)) => self.plan.stored(request.block),
            (_, fault) => self.store(&mut request, fault),
        }
        self.pending[n] = request;
    }

    fn store(&mut self, request: &mut Request, fault: Option<Fault>) {
        let mut content = vec![0; BLOCK];
        let from = self.at(request.data, BLOCK as u64);
        // SAFETY: inside the arena.
        unsafe { std::ptr::copy_nonoverlapping(from, content.as_mut_ptr(), BLOCK) };
        request.content.clone_from(&content);
        self.plan.stored(request.block);
        let sectors: u64 = match (request.failed, fault) {
            (_, Some(Fault::TornWrite)) => 0x0f,
            (true, _) => self.dice(256),
            _ => 0xff,
        };
        let block = request.block;
        let old = self.block_mut(block).to_vec();
        let new = self.block_mut(block);
        for sector in (0..8).filter(|s| sectors >> s & 1 != 0) {
            let range = sector * 512..sector * 512 + 512;
            new[range.clone()].copy_from_slice(&content[range]);
        }
        if let Some(Fault::FlippedBit) = fault {
            new[1000] ^= 4;
        }
        self.before[block] = old;
    }

    fn come_back(&mut self, request: Request) {
        let fault = self
            .plan
            .completion(&request, self.disk[request.block * BLOCK] != 0xee);
        let failed = request.failed;
        if request.kind == 0 && !failed && fault != Some(Fault::NoData) {
            self.copy_in(request.data, &request.content);
        }
        let mut len = if request.kind == 0 { 4097 } else { 1 };
        match fault {
            Some(Fault::Dropped) => return self.plan.dropped.push(request),
            Some(Fault::NoStatus) => {}
            Some(Fault::BadStatus) => self.put(request.status, 2u8),
            _ => self.put(request.status, u8::from(failed)),
        }
        if fault == Some(Fault::Length) {
            len -= 1;
        }
        let head = match fault {
            Some(Fault::OtherId) => request.head + 1,
            _ => request.head,
        };
        self.push_used(request.queue, head, len);
        if fault == Some(Fault::Twice) {
            self.push_used(request.queue, head, len);
        }
        if request.kind == 1 && !failed {
            self.plan.acknowledged(request.block, request.content);
        }
    }

    pub(super) fn push_used(&mut self, queue: usize, head: u16, len: u32) {
        let ring = self.rings[queue].clone();
        let used = ring.addresses[2];
        let at = used + 4 + 8 * u64::from(ring.used % ring.size);
        self.put(at, u32::from(head));
        self.put(at + 4, len);
        self.rings[queue].used = ring.used.wrapping_add(1);
        self.put(used + 2, self.rings[queue].used);
    }
}
