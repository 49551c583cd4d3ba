//! Processors: who of a migration runs on them, when, and after whom.
//!
//! The guest comes first. Threads of the migration keep off the processors that its vCPUs use
//! ([`steer`]), run after them where they meet ([`priority`]), and as many compressors work as
//! there are idle processors for ([`pool`]). One thread looks after it, [`Watch`].

pub(crate) mod budget;
pub(crate) mod idle;
pub(crate) mod pool;
pub(crate) mod priority;
pub(crate) mod run_delay;
mod steer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use budget::{Budget, Slots};
use idle::Usage;
use pool::{Control, Gate, Sample};
use priority::Helpers;
use run_delay::{NAMED, vcpu_run_delay};
use rustix::thread::{CpuSet, sched_getaffinity};
use steer::Threads;

const EVERY: Duration = Duration::from_millis(50);
/// The kernel counts processor time in ticks: over less than this, they say nothing.
const SAMPLE: Duration = Duration::from_millis(200);

/// Looks after a migration's threads while its guest runs, until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins: steers threads, and opens `gate` as far as there are idle processors, and slots of
    /// the host's budget.
    pub(crate) fn start(gate: Arc<Gate>, helpers: Helpers, budget: Option<Budget>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let here = stopped.clone();
        let watch = move || {
            // Before this thread is steered itself.
            let Ok(allowed) = sched_getaffinity(None) else {
                return;
            };
            let mut threads = Threads::of(NAMED, allowed);
            let mut look = Look::new(&gate, budget, allowed);
            while !here.load(Ordering::Acquire) {
                threads.look();
                look.at(&gate, &helpers);
                std::thread::park_timeout(EVERY);
            }
            gate.open();
            threads.release();
        };
        let thread = std::thread::Builder::new()
            .name("processors".to_owned())
            .stack_size(128 << 10)
            .spawn(watch)
            .ok();
        Self { stopped, thread }
    }

    /// The guest stands still: every thread may run where it might before. Soon, and without
    /// waiting for it.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What was seen last.
struct Look {
    slots: Option<Slots>,
    processors: CpuSet,
    control: Control,
    when: Instant,
    usage: Option<Usage>,
    waited: Duration,
}

impl Look {
    fn new(gate: &Gate, budget: Option<Budget>, processors: CpuSet) -> Self {
        let mut slots = budget.map(Slots::of);
        // One, until there is something to do for more.
        let active = allowed(&mut slots, gate, gate.threads());
        gate.set(active, gate.room().1);
        Self {
            slots,
            processors,
            control: Control::new(gate.threads()),
            when: Instant::now(),
            usage: Usage::now(&processors),
            waited: vcpu_run_delay(),
        }
    }

    fn at(&mut self, gate: &Gate, helpers: &Helpers) {
        let passed = self.when.elapsed();
        if passed < SAMPLE {
            return;
        }
        let (usage, waited) = (Usage::now(&self.processors), vcpu_run_delay());
        if let (Some(before), Some(now)) = (self.usage, usage) {
            let (idle, own) = now.since(&before, passed);
            let vcpus_waited = waited.saturating_sub(self.waited);
            if idle >= pool::IDLE {
                helpers.starve(false);
            }
            let active = self.control.next(Sample {
                idle,
                vcpus_waited: vcpus_waited.as_secs_f64() / passed.as_secs_f64(),
                starved: helpers.were_starved(),
            });
            gate.set(allowed(&mut self.slots, gate, active), idle + own);
        }
        (self.when, self.usage, self.waited) = (Instant::now(), usage, waited);
    }
}

/// How many of `active` compressors the host's budget allows. No more of it is held than there was
/// use for of late, and one: a migration whose link is slow leaves the rest to others.
fn allowed(slots: &mut Option<Slots>, gate: &Gate, active: usize) -> usize {
    match slots {
        Some(slots) => 1 + slots.hold(active.min(gate.used_of_late() + 1).saturating_sub(1)),
        None => active,
    }
}
