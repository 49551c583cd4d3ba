//! A backend with guest memory beside it, and what tests do with both.
#![allow(dead_code)]

pub(crate) mod fuse;
pub(crate) mod mounts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmferry_block::{BlockBackend, Buffers, Completion, Extent, JobEnd, JobId, JobKind, Operation};
use vmferry_memory::GuestRam;

/// Far more than anything takes: it ends a test that hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// Guest memory of a rig.
pub(crate) const RAM: u64 = 64 << 20;

pub(crate) struct Rig {
    pub(crate) disk: Box<dyn BlockBackend>,
    pub(crate) ram: Arc<GuestRam>,
    next: u64,
}

impl Rig {
    pub(crate) fn new(disk: Box<dyn BlockBackend>) -> Self {
        Self {
            disk,
            ram: Arc::new(GuestRam::new(RAM).unwrap()),
            next: 0,
        }
    }

    pub(crate) fn buffers(&self, runs: &[(u64, u32)]) -> Buffers {
        Buffers::new(&self.ram, runs.iter().copied()).unwrap()
    }

    /// Submits something of the disk at `offset`, as long as the runs of guest memory are.
    pub(crate) fn submit(&mut self, kind: JobKind, offset: u64, runs: &[(u64, u32)]) -> JobId {
        let buffers = self.buffers(runs);
        self.submit_buffers(kind, Extent::new(offset, buffers.len()), buffers)
    }

    /// Submits something without memory.
    pub(crate) fn submit_range(&mut self, kind: JobKind, offset: u64, len: u64) -> JobId {
        self.submit_buffers(kind, Extent::new(offset, len), Buffers::none())
    }

    pub(crate) fn submit_buffers(
        &mut self,
        kind: JobKind,
        extent: Extent,
        buffers: Buffers,
    ) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        self.disk.submit(Operation {
            id,
            kind,
            extent,
            buffers,
        });
        id
    }

    /// The next `count` completions, in the order in which they came.
    pub(crate) fn ends(&mut self, count: usize) -> Vec<Completion> {
        let ended = self.at_least(count);
        assert_eq!(ended.len(), count, "more ends than operations");
        ended
    }

    /// The next completions, so many or more.
    pub(crate) fn at_least(&mut self, count: usize) -> Vec<Completion> {
        let mut ended = Vec::new();
        while ended.len() < count {
            assert!(is_ready(self.disk.as_ref(), LONG), "nothing ends any more");
            self.disk.reap(&mut ended);
        }
        ended
    }

    /// The one operation in flight has ended so.
    pub(crate) fn end(&mut self, id: JobId) -> JobEnd {
        let ends = self.ends(1);
        assert_eq!(ends[0].id, id);
        ends[0].end
    }

    pub(crate) fn run(&mut self, kind: JobKind, offset: u64, runs: &[(u64, u32)]) -> JobEnd {
        let id = self.submit(kind, offset, runs);
        self.end(id)
    }

    pub(crate) fn run_range(&mut self, kind: JobKind, offset: u64, len: u64) -> JobEnd {
        let id = self.submit_range(kind, offset, len);
        self.end(id)
    }

    /// Fills guest memory with bytes that `seed` tells apart.
    pub(crate) fn fill(&self, runs: &[(u64, u32)], seed: u8) -> Vec<u8> {
        let buffers = self.buffers(runs);
        let data = pattern(buffers.len() as usize, seed);
        assert_eq!(buffers.copy_in(0, &data), data.len());
        data
    }

    /// What guest memory holds.
    pub(crate) fn bytes(&self, runs: &[(u64, u32)]) -> Vec<u8> {
        let buffers = self.buffers(runs);
        let mut data = vec![0; buffers.len() as usize];
        assert_eq!(buffers.copy_out(0, &mut data), data.len());
        data
    }

    /// What the disk holds.
    pub(crate) fn read_disk(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let runs = [(RAM / 2, len)];
        assert_eq!(self.run(JobKind::Read, offset, &runs), JobEnd::Done);
        self.bytes(&runs)
    }

    /// Guest frames that were noted as written since the last call.
    pub(crate) fn noted(&self) -> Vec<u64> {
        let mut frames = Vec::new();
        self.ram.take_vmm_writes(|run| frames.extend(run.frames()));
        frames
    }
}

pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |i: usize| (i as u8).wrapping_mul(31) ^ ((i >> 8) as u8) ^ seed;
    (0..len).map(byte).collect()
}

/// Waits until there is something to reap.
pub(crate) fn is_ready(disk: &dyn BlockBackend, longest: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(disk.ready(), PollFlags::IN)];
    let timeout = Timespec::try_from(longest).unwrap();
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// Waits for something that another thread brings about, and nobody tells.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LONG, "never: {what}");
        std::thread::yield_now();
    }
}
