//! A disk with guest memory, driven as a device's worker drives it.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmferry_block::nbd::{self, NbdBackend};
use vmferry_block::{
    BlockBackend, Buffers, Completion, Extent, Geometry, JobEnd, JobId, JobKind, Operation,
};
use vmferry_memory::GuestRam;

/// After so long a test has failed. No test depends on it otherwise.
const NEVER: Timespec = Timespec {
    tv_sec: 100,
    tv_nsec: 0,
};
const RAM: u64 = 256 << 20;

pub(crate) struct Disk {
    backend: Option<NbdBackend>,
    pub(crate) ram: Arc<GuestRam>,
    /// Guest memory handed out.
    used: u64,
    next: u64,
    ended: Vec<Completion>,
}

/// Bytes that tell where they belong, and which version they are.
pub(crate) fn pattern(extent: Extent, version: u8) -> Vec<u8> {
    let byte = |at: u64| (at ^ (at >> 9) ^ (at >> 20)) as u8 ^ version.wrapping_mul(37);
    (extent.offset..extent.end()).map(byte).collect()
}

impl Disk {
    pub(crate) fn open(uri: &str) -> Self {
        Self::of(nbd::open(uri, false).unwrap_or_else(|e| panic!("{e}")))
    }

    pub(crate) fn of(backend: NbdBackend) -> Self {
        Self {
            backend: Some(backend),
            ram: Arc::new(GuestRam::new(RAM).unwrap()),
            used: 0,
            next: 0,
            ended: Vec::new(),
        }
    }

    pub(crate) fn backend(&mut self) -> &mut NbdBackend {
        self.backend.as_mut().unwrap()
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        self.backend.as_ref().unwrap().geometry()
    }

    /// Guest memory of `len` bytes, in two runs.
    pub(crate) fn memory(&mut self, len: u64) -> Buffers {
        let first = (len / 3) as u32;
        let at = self.used;
        self.used = (at + len).next_multiple_of(4096) + 4096;
        let runs = [(at, first), (at + u64::from(first), len as u32 - first)];
        Buffers::new(&self.ram, runs).unwrap()
    }

    pub(crate) fn submit(&mut self, kind: JobKind, extent: Extent, buffers: Buffers) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        self.backend().submit(Operation {
            id,
            kind,
            extent,
            buffers,
        });
        id
    }

    /// Begins to write the pattern.
    pub(crate) fn write(&mut self, extent: Extent, version: u8) -> JobId {
        let buffers = self.memory(extent.len);
        buffers.copy_in(0, &pattern(extent, version));
        self.submit(JobKind::Write, extent, buffers)
    }

    pub(crate) fn read(&mut self, extent: Extent) -> (JobId, Buffers) {
        let buffers = self.memory(extent.len);
        let id = self.submit(JobKind::Read, extent, buffers.clone());
        (id, buffers)
    }

    pub(crate) fn plain(&mut self, kind: JobKind, extent: Extent) -> JobId {
        self.submit(kind, extent, Buffers::none())
    }

    pub(crate) fn flush(&mut self) -> JobId {
        self.plain(JobKind::Flush, Extent::default())
    }

    /// What has ended so far, without waiting.
    pub(crate) fn reap(&mut self) -> &[Completion] {
        let mut ended = std::mem::take(&mut self.ended);
        self.backend().reap(&mut ended);
        self.ended = ended;
        &self.ended
    }

    /// Waits for this one to end. Each end comes once.
    pub(crate) fn wait(&mut self, id: JobId) -> JobEnd {
        loop {
            let of_it = |c: &Completion| c.id == id;
            if let Some(at) = self.reap().iter().position(of_it) {
                return self.ended.swap_remove(at).end;
            }
            let mut ready = [PollFd::from_borrowed_fd(
                self.backend.as_ref().unwrap().ready(),
                PollFlags::IN,
            )];
            let some = poll(&mut ready, Some(&NEVER)).unwrap();
            assert!(some > 0, "{id:?} does not end");
        }
    }

    pub(crate) fn done(&mut self, id: JobId) {
        assert_eq!(self.wait(id), JobEnd::Done, "{id:?}");
    }

    /// Waits until everything submitted was sent, as far as the socket takes it.
    pub(crate) fn sent(&mut self) {
        // Refused when the client's thread comes to it; told of when it has sent the others.
        let probe = self.plain(JobKind::Read, Extent::new(u64::MAX, 512));
        assert!(matches!(self.wait(probe), JobEnd::Failed(_)));
    }

    /// Reads, and compares with the pattern.
    pub(crate) fn check(&mut self, extent: Extent, version: u8) {
        self.check_is(extent, &pattern(extent, version));
    }

    pub(crate) fn check_is(&mut self, extent: Extent, content: &[u8]) {
        let (id, buffers) = self.read(extent);
        self.done(id);
        let mut found = vec![0; extent.len as usize];
        buffers.copy_out(0, &mut found);
        let first = found.iter().zip(content).position(|(a, b)| a != b);
        assert_eq!(first, None, "{extent:?} differs from this byte on");
    }

    /// Ends as a device does that goes away.
    pub(crate) fn close(mut self) {
        drop(self.backend.take());
    }
}
