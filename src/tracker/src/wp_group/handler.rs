//! The thread that answers write faults. Whoever writes waits for it, so it waits for nobody that
//! could wait for the guest: it takes no lock but that of a group, allocates nothing, and logs
//! only when it ends. What is answered when is for [`Answers`] to say.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmferry_memory::{GuestRam, RamRegion};
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::answers::{Answers, Costs, Kernel};
use super::groups::{ArmError, Groups};
use crate::Throttle;
use crate::sys::{Uffd, raise_priority, wait_readable};

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

    /// The page that is mapped at `address`.
    fn page(&self, address: usize) -> Option<PageRange> {
        let region = self
            .ram
            .regions()
            .iter()
            .filter(|r| address >= r.hva)
            .find(|r| address - r.hva < r.len())?;
        let offset = (address - region.hva) as u64 / PAGE_SIZE;
        Some(PageRange::new(region.range.start + offset, 1))
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

/// The real kernel, and time since the thread began.
struct Real<'a> {
    shared: &'a Shared,
    began: Instant,
}

impl Kernel for Real<'_> {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn release(&self, pages: PageRange) -> io::Result<()> {
        let hva = self.shared.ram.hva(pages).map_err(io::Error::other)?;
        self.shared.uffd.release(hva, pages.bytes() as usize)
    }
}

/// The thread's own state.
struct Server<'a> {
    shared: &'a Shared,
    woken: &'a PipeReader,
    kernel: Real<'a>,
    answers: Answers<'a>,
}

impl Server<'_> {
    /// Waits for something and does it; false when it is to end.
    fn turn(&mut self) -> Result<bool, ArmError> {
        let now = self.kernel.now();
        let next = self.answers.next_due();
        let wait = next.map(|due| due.saturating_sub(now));
        let ready = wait_readable(&self.shared.uffd, self.woken, wait);
        let (faults, woken) = ready.map_err(ArmError::Kernel)?;
        if woken && !self.wake_up().map_err(ArmError::Kernel)? {
            return Ok(false);
        }
        if faults {
            self.take_faults()?;
        }
        self.answers.answer_due(&self.kernel)?;
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
        self.answers.throttle(throttle, self.kernel.now());
        Ok(true)
    }

    fn take_faults(&mut self) -> Result<(), ArmError> {
        let (mut first, mut failed) = (true, None);
        let (shared, kernel, answers) = (self.shared, &self.kernel, &mut self.answers);
        let read = shared.uffd.read_faults(|address, thread| {
            if std::mem::take(&mut first) {
                // One read has taken them all: from here on the last waits like the first.
                answers.faults_read(kernel.now());
            }
            let Some(page) = shared.page(address) else {
                return;
            };
            if let Err(error) = answers.fault(kernel, page, thread) {
                failed = Some(error);
            }
        });
        read.map_err(ArmError::Kernel)?;
        failed.map_or(Ok(()), Err)
    }
}

fn serve(shared: &Shared, woken: &PipeReader) {
    let guard = LetGo(shared);
    // A vCPU stands still while this thread waits for a processor.
    raise_priority();
    let mut server = Server {
        shared,
        woken,
        kernel: Real {
            shared,
            began: Instant::now(),
        },
        answers: Answers::new(&shared.groups, &shared.costs, shared.grow),
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
