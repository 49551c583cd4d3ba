//! The thread that answers write faults. Whoever writes waits for it, so it waits for nobody that
//! could wait for the guest: it takes no lock but that of a group, allocates nothing, and logs
//! only when it ends.

use std::io::{self, PipeReader, PipeWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmferry_memory::{GuestRam, RamRegion, range_at};
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::groups::{ArmError, Groups};
use crate::sys::{Uffd, raise_priority, wait_readable};

/// What the faults cost, since the tracker was started.
#[derive(Debug, Default)]
pub(super) struct Costs {
    pub(super) faults: AtomicU64,
    pub(super) pages: AtomicU64,
    /// From when the fault was read to when its writer could go on.
    pub(super) stall_ns: AtomicU64,
    pub(super) longest_ns: AtomicU64,
}

impl Costs {
    fn add(&self, pages: u64, stall: Duration) {
        let ns = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.stall_ns.fetch_add(ns, Ordering::Relaxed);
        self.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

/// What the thread works on.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ram: Arc<GuestRam>,
    pub(super) uffd: Uffd,
    pub(super) groups: Arc<Groups>,
    pub(super) costs: Arc<Costs>,
    /// Whether groups grow where neighbours were written.
    pub(super) grow: bool,
}

impl Shared {
    /// Takes all protection off and wakes everybody, so that nobody waits for an answer any more.
    pub(super) fn let_go(&self) {
        for region in self.ram.regions() {
            if let Err(error) = self.uffd.unregister(region.hva, region.len()) {
                tracing::warn!(%error, "write protection could not be taken off");
            }
        }
    }

    fn answer(&self, address: usize) -> Result<(), ArmError> {
        let began = Instant::now();
        let Some(region) = self.region(address) else {
            return Ok(());
        };
        let gfn = region.range.start + (address - region.hva) as u64 / PAGE_SIZE;
        let release = |group: PageRange| {
            let (start, len) = span(region, group);
            self.uffd.release(start, len)
        };
        let pages = self.groups.fault(gfn, self.grow, release)?;
        self.costs.add(pages, began.elapsed());
        Ok(())
    }

    fn region(&self, address: usize) -> Option<&RamRegion> {
        let regions = self.ram.regions().iter();
        regions
            .filter(|r| address >= r.hva)
            .find(|r| address - r.hva < r.len())
    }
}

/// Where the pages of `group` are mapped, in bytes.
pub(super) fn span(region: &RamRegion, group: PageRange) -> (usize, usize) {
    debug_assert_eq!(range_at(region, region.hva, region.hva + 4096).count, 1);
    let offset = (group.start - region.range.start) * PAGE_SIZE;
    (region.hva + offset as usize, group.bytes() as usize)
}

/// The running thread. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    /// Starts it.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (until, stop) = io::pipe()?;
        let here = shared.clone();
        let thread = std::thread::Builder::new()
            .name("write-faults".to_owned())
            .stack_size(128 << 10)
            .spawn(move || serve(&here, &until))?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // First nobody waits for the thread any more, then it ends.
        self.shared.let_go();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets the guest go on, tracked or not, whatever becomes of the thread.
struct LetGo<'a>(&'a Shared);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.let_go();
        }
    }
}

fn serve(shared: &Shared, until: &PipeReader) {
    let guard = LetGo(shared);
    // A vCPU stands still while this thread waits for a processor.
    raise_priority();
    loop {
        let served = wait_readable(&shared.uffd, until).and_then(|faults| {
            if !faults {
                return Ok(false);
            }
            let mut failed = None;
            shared.uffd.read_faults(|address| {
                if let Err(error) = shared.answer(address) {
                    failed = Some(error);
                }
            })?;
            match failed {
                Some(ArmError::Kernel(error)) => Err(error),
                Some(ArmError::Memory(error)) => Err(io::Error::other(error)),
                None => Ok(true),
            }
        });
        match served {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                shared.groups.lose();
                shared.let_go();
                tracing::error!(%error, "write faults cannot be answered: all RAM counts as written");
                break;
            }
        }
    }
    drop(guard);
}
