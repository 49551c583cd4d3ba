//! How much memory a migration takes beyond the guest's RAM: measured, not reckoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmferry_memory::GuestRam;
use vmferry_protocol::PAGE_SIZE;

const EVERY: Duration = Duration::from_millis(20);
/// A look walks the page tables of guest RAM: this many times as long as it took, nothing.
const REST: u32 = 100;

/// Samples the process's resident memory without the guest's RAM, from its start to its end.
#[derive(Debug)]
pub(crate) struct Meter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    before: u64,
    peak: AtomicU64,
    ended: AtomicBool,
}

/// Resident bytes of this process, from /proc/self/statm.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE_SIZE)
}

/// Resident bytes that are not `ram`'s.
fn beyond(ram: Option<&GuestRam>) -> Option<u64> {
    // The total first: RAM that grows between the two looks must not count as the engine's.
    let total = resident()?;
    let mut in_ram = 0;
    if let Some(ram) = ram {
        ram.populated(|run| in_ram += run.bytes()).ok()?;
    }
    Some(total.saturating_sub(in_ram))
}

impl Meter {
    /// Begins. `ram` is the guest's, and may come later.
    pub(crate) fn start(ram: impl Fn() -> Option<Arc<GuestRam>> + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            before: beyond(ram().as_deref()).unwrap_or(0),
            peak: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let here = shared.clone();
        let sample = move || {
            while !here.ended.load(Ordering::Acquire) {
                let began = Instant::now();
                let now = beyond(ram().as_deref()).unwrap_or(0);
                let more = now.saturating_sub(here.before);
                here.peak.fetch_max(more, Ordering::Relaxed);
                std::thread::park_timeout(EVERY.max(began.elapsed() * REST));
            }
        };
        let thread = std::thread::Builder::new()
            .name("memory-meter".to_owned())
            .stack_size(128 << 10)
            .spawn(sample)
            .ok();
        Self { shared, thread }
    }

    /// Most bytes beyond RAM and beyond what was in use at the start.
    pub(crate) fn peak(&self) -> u64 {
        self.shared.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
