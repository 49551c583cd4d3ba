//! Processors: who of a migration runs on them, when, and after whom.
//!
//! The guest comes first. Threads of the migration keep off the processors that its vCPUs use
//! ([`steer`]), run after them where they meet ([`priority`]), and as many compressors work as
//! there are idle processors for ([`pool`]). One thread looks after it, [`Watch`].

pub(crate) mod budget;
mod idle;
pub(crate) mod pool;
pub(crate) mod priority;
mod steer;
pub(crate) mod threads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use budget::{Budget, Slots};
use idle::Usage;
use pool::{Control, Gate, Room, Sample};
use priority::{Helpers, Seen};
use rustix::thread::{CpuSet, sched_getaffinity};
use steer::Threads;

use crate::background::Background;

const EVERY: Duration = Duration::from_millis(50);
/// The kernel counts processor time in ticks: over less than this, they say little.
const SAMPLE: Duration = Duration::from_millis(200);
/// But that no processor is idle at all is to be known soon.
const FIRST: Duration = Duration::from_millis(50);

/// Looks after a migration's threads while its guest runs, until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Watch(Background);

impl Watch {
    /// Begins: steers threads, and opens `gate` as far as there are idle processors, and slots of
    /// the host's budget.
    pub(crate) fn start(gate: Arc<Gate>, helpers: Helpers, budget: Option<Budget>) -> Self {
        Self(Background::start("processors", move |until| {
            // Before this thread is steered itself.
            let Ok(allowed) = sched_getaffinity(None) else {
                return;
            };
            let mut threads = Threads::of(threads::VCPU, allowed);
            let mut seen = Seen::default();
            let mut look = Look::new(&gate, &helpers, budget, allowed);
            loop {
                threads.look();
                helpers.look_after(&mut seen);
                look.at(&gate, &helpers);
                if !until.rest(EVERY) {
                    break;
                }
            }
            gate.open();
            threads.release();
        }))
    }

    /// The guest stands still: every thread may run where it might before. Soon, and without
    /// waiting for it.
    pub(crate) fn stop(&self) {
        self.0.stop();
    }
}

/// What was seen last.
struct Look {
    slots: Option<Slots>,
    processors: CpuSet,
    control: Control,
    after: Duration,
    when: Instant,
    usage: Option<Usage>,
}

impl Look {
    fn new(gate: &Gate, helpers: &Helpers, budget: Option<Budget>, processors: CpuSet) -> Self {
        let mut slots = budget.map(Slots::of);
        // One, until there is something to do for more.
        gate.set(Room {
            compressors: allowed(&mut slots, gate, gate.threads()),
            ..gate.room()
        });
        Self {
            slots,
            processors,
            control: Control::new(gate.threads()),
            after: FIRST,
            when: Instant::now(),
            usage: Usage::now(&processors, helpers),
        }
    }

    fn at(&mut self, gate: &Gate, helpers: &Helpers) {
        let passed = self.when.elapsed();
        if passed < self.after {
            return;
        }
        self.after = SAMPLE;
        let usage = Usage::now(&self.processors, helpers);
        if let (Some(before), Some(now)) = (self.usage, usage) {
            let used = now.since(&before, passed);
            if used.idle >= pool::IDLE {
                helpers.starve(false);
            }
            let active = self.control.next(Sample {
                idle: used.idle,
                vcpus_waited: used.vcpus_waited,
                others_waited: used.others_waited,
                starved: helpers.were_starved(),
            });
            gate.set(Room {
                compressors: allowed(&mut self.slots, gate, active),
                // Not what page streams use: that is not there for compressing.
                spare: used.idle + used.compressors,
            });
        }
        (self.when, self.usage) = (Instant::now(), usage);
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
