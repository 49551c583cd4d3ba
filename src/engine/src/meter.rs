//! How much memory a migration takes beyond the guest's RAM: measured, not reckoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmferry_memory::GuestRam;
use vmferry_protocol::PAGE_SIZE;

use crate::background::Background;

const EVERY: Duration = Duration::from_millis(20);
/// A look walks the page tables of guest RAM: this many times as long as it took, nothing.
const REST: u32 = 100;

/// Samples the process's resident memory without the guest's RAM, from its start to its end.
#[derive(Debug)]
pub(crate) struct Meter {
    peak: Arc<AtomicU64>,
    _looks: Background,
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
        let before = beyond(ram().as_deref()).unwrap_or(0);
        let peak = Arc::new(AtomicU64::new(0));
        let here = peak.clone();
        let looks = Background::start("memory-meter", move |until| {
            loop {
                let began = Instant::now();
                let now = beyond(ram().as_deref()).unwrap_or(0);
                here.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
                if !until.rest(EVERY.max(began.elapsed() * REST)) {
                    return;
                }
            }
        });
        Self {
            peak,
            _looks: looks,
        }
    }

    /// Most bytes beyond RAM and beyond what was in use at the start.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}
