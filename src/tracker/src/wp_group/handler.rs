//! The thread that answers write faults. Whoever writes waits for it, so it waits for nobody that
//! could wait for the guest: it takes no lock but that of a group, allocates nothing, and logs
//! only when it ends.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmferry_memory::{GuestRam, RamRegion};
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::groups::{ArmError, Groups};
use super::pace::Pace;
use crate::Throttle;
use crate::sys::{Uffd, raise_priority, wait_readable};

/// What the faults cost, since the tracker was started.
#[derive(Debug, Default)]
pub(super) struct Costs {
    pub(super) faults: AtomicU64,
    pub(super) pages: AtomicU64,
    /// From when the fault was read to when its writer could go on.
    pub(super) stall_ns: AtomicU64,
    pub(super) longest_ns: AtomicU64,
    /// How long writers were made to wait, on top of that.
    pub(super) throttled_ns: AtomicU64,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Costs {
    /// From the beginning.
    pub(super) fn reset(&self) {
        for counter in [
            &self.faults,
            &self.pages,
            &self.stall_ns,
            &self.longest_ns,
            &self.throttled_ns,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, pages: u64, stall: Duration) {
        let ns = nanos(stall);
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
    /// Read by the thread when it is woken.
    pub(super) throttle: Mutex<Option<Throttle>>,
    /// Protection is being taken off: faults read before need no answer.
    pub(super) ending: AtomicBool,
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

    fn answer(&self, address: usize, grow: bool) -> Result<(), ArmError> {
        let began = Instant::now();
        let Some(region) = self.region(address) else {
            return Ok(());
        };
        let gfn = region.range.start + (address - region.hva) as u64 / PAGE_SIZE;
        let release = |group: PageRange| {
            let (start, len) = span(region, group);
            self.uffd.release(start, len)
        };
        let pages = self.groups.fault(gfn, self.grow && grow, release)?;
        // Another writer's fault may have released it already.
        if pages > 0 {
            self.costs.add(pages, began.elapsed());
        }
        Ok(())
    }

    /// Pages that a write to `address` would release; none where it is writable already.
    fn price(&self, address: usize) -> u64 {
        self.region(address).map_or(0, |region| {
            let gfn = region.range.start + (address - region.hva) as u64 / PAGE_SIZE;
            self.groups.price(gfn).unwrap_or(0)
        })
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
    let offset = (group.start - region.range.start) * PAGE_SIZE;
    (region.hva + offset as usize, group.bytes() as usize)
}

/// The running thread. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    /// A byte wakes the thread; closed, it ends.
    wake: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    /// Starts it.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (woken, wake) = io::pipe()?;
        let here = shared.clone();
        let thread = std::thread::Builder::new()
            .name("write-faults".to_owned())
            .stack_size(128 << 10)
            .spawn(move || serve(&here, &woken))?;
        Ok(Self {
            shared,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Slows writers down from now on, or lets all go on.
    pub(super) fn throttle(&self, throttle: Option<Throttle>) {
        let mut current = self
            .shared
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = throttle;
        drop(current);
        if let Some(mut wake) = self.wake.as_ref() {
            // Full: the thread is about to wake up anyway.
            let _ = wake.write(&[1]);
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // First nobody waits for the thread any more, then it ends.
        self.shared.ending.store(true, Ordering::Release);
        self.shared.let_go();
        drop(self.wake.take());
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
            self.0.groups.lose();
            self.0.let_go();
        }
    }
}

/// A writer that is made to wait.
struct Waiting {
    address: usize,
    since: Duration,
    due: Duration,
}

/// Faults that may wait at a time without memory being taken: more than a VM has vCPUs.
const WAITING: usize = 64;

/// The thread's own state.
struct Server<'a> {
    shared: &'a Shared,
    woken: &'a PipeReader,
    began: Instant,
    pace: Pace,
    waiting: Vec<Waiting>,
}

impl Server<'_> {
    /// Waits for something and does it; false when it is to end.
    fn turn(&mut self) -> Result<bool, ArmError> {
        let now = self.began.elapsed();
        let next = self.waiting.iter().map(|w| w.due).min();
        let wait = next.map(|due| due.saturating_sub(now));
        let ready = wait_readable(&self.shared.uffd, self.woken, wait);
        let (faults, woken) = ready.map_err(ArmError::Kernel)?;
        if woken && !self.wake_up().map_err(ArmError::Kernel)? {
            return Ok(false);
        }
        if faults {
            self.take_faults()?;
        }
        self.let_due_go()?;
        Ok(true)
    }

    fn wake_up(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64];
        let mut woken = self.woken;
        if woken.read(&mut bytes)? == 0 {
            return Ok(false);
        }
        let throttle = *self
            .shared
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = self.began.elapsed();
        self.pace.set(throttle, now);
        for waiting in &mut self.waiting {
            waiting.due = now;
        }
        Ok(true)
    }

    fn take_faults(&mut self) -> Result<(), ArmError> {
        let mut failed = None;
        let (shared, pace, waiting) = (self.shared, &mut self.pace, &mut self.waiting);
        let began = self.began;
        let read = shared.uffd.read_faults(|address, thread| {
            let now = began.elapsed();
            let due = if pace.is_set() {
                pace.due(now, thread, shared.price(address))
            } else {
                now
            };
            if due > now && waiting.len() < WAITING {
                waiting.push(Waiting {
                    address,
                    since: now,
                    due,
                });
            } else if let Err(error) = shared.answer(address, !pace.is_set()) {
                failed = Some(error);
            }
        });
        read.map_err(ArmError::Kernel)?;
        failed.map_or(Ok(()), Err)
    }

    fn let_due_go(&mut self) -> Result<(), ArmError> {
        let now = self.began.elapsed();
        let mut at = 0;
        while let Some(w) = self.waiting.get(at) {
            if w.due > now {
                at += 1;
                continue;
            }
            let Waiting { address, since, .. } = self.waiting.swap_remove(at);
            let waited = nanos(now.saturating_sub(since));
            self.shared
                .costs
                .throttled_ns
                .fetch_add(waited, Ordering::Relaxed);
            // What a writer has waited for is what it gets.
            self.shared.answer(address, !self.pace.is_set())?;
        }
        Ok(())
    }
}

fn serve(shared: &Shared, woken: &PipeReader) {
    let guard = LetGo(shared);
    // A vCPU stands still while this thread waits for a processor.
    raise_priority();
    let mut server = Server {
        shared,
        woken,
        began: Instant::now(),
        pace: Pace::new(),
        waiting: Vec::with_capacity(WAITING),
    };
    loop {
        let error = match server.turn() {
            Ok(true) => continue,
            Ok(false) => break,
            Err(ArmError::Kernel(error)) => error,
            Err(ArmError::Memory(error)) => io::Error::other(error),
        };
        if shared.ending.load(Ordering::Acquire) {
            break;
        }
        shared.groups.lose();
        shared.let_go();
        tracing::error!(%error, "write faults cannot be answered: all RAM counts as written");
        break;
    }
    drop(guard);
}
