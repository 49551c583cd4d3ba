//! A polled driver for a virtio block device, with a ledger of what its disk must hold.
//!
//! Each vCPU has its own virtqueue and its own share of the blocks; vCPU 0 brings the device up.
//! All that the driver knows lies in guest RAM. What it finds there is not trusted: a garbled
//! arena makes failures, never an access outside. Once something is wrong, every verify says so.

mod check;
mod choose;
mod complete;
mod device;
mod failure;
mod layout;
pub mod ledger;
mod queue;
pub mod stamp;
mod state;
mod submit;

use core::sync::atomic::{AtomicU32, Ordering};

pub(crate) use check::Progress;
pub use failure::{Failure, Fault};
pub use layout::Layout;
pub use state::Counters;

use crate::abi;
use crate::params::Params;
use crate::pattern::mix;
use crate::platform::Platform;
use crate::share::Share;
use ledger::Entry;
use queue::Queue;
use state::State;
use submit::Slot;

/// Phases of the device: not brought up, up, and what could not be.
const UP: u32 = 1;
const FAILED: u32 = 2;
/// Failures told in words; the others are only counted.
const MAX_TOLD: u64 = 16;

/// When a driver wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Now,
    /// After so many microseconds.
    Later(u32),
    /// It has nothing to do.
    Never,
}

/// One vCPU's driver.
#[derive(Debug)]
pub struct Disk {
    params: Params,
    layout: Layout,
    index: u32,
    phase: *const AtomicU32,
    state: *mut State,
    queue: Queue,
    slots: *mut Slot,
    /// The ledger's entries of this share.
    entries: *mut Entry,
    share: Share,
}

impl Disk {
    /// The driver of vCPU `index`, which goes on from whatever is in the arena; none where
    /// `params` has no disk.
    ///
    /// # Safety
    /// As [`Worker::new`](crate::workload::Worker::new); `index` is below `params.vcpus`.
    pub(crate) unsafe fn new(arena: *mut u8, params: &Params, index: u32) -> Option<Self> {
        let layout = Layout::of(params)?;
        let share = Share::of(0, params.disk_blocks, index.into(), params.vcpus);
        let part = params.disk_offset() + layout.part(index.into());
        // SAFETY: all offsets are inside the arena, whose size is computed from them; eight
        // states are in the page's second half. The queue's size is by the same layout.
        unsafe {
            let entries = arena
                .add((params.disk_offset() + layout.ledger()) as usize)
                .cast::<Entry>();
            let base = arena.add(part as usize);
            Some(Self {
                params: *params,
                layout,
                index,
                phase: arena.add(layout::PHASE as usize).cast(),
                state: arena
                    .add(layout::STATES as usize)
                    .cast::<State>()
                    .add(index as usize),
                queue: Queue::new(base, abi::ARENA_GPA + part, layout.queue_size()),
                slots: base.add(layout::SLOTS as usize).cast(),
                entries: entries.add(share.from as usize),
                share,
            })
        }
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: valid by `new`'s contract, and only this driver uses this state.
        unsafe { &mut *self.state }
    }

    fn phase(&self) -> &AtomicU32 {
        // SAFETY: a word of the page of states that is only used so.
        unsafe { &*self.phase }
    }

    /// The ledger's entry of a block of this share; none for what is no such block.
    fn entry(&self, block: u64) -> Option<*mut Entry> {
        // SAFETY: the ledger has an entry for each block of the share.
        (block < self.share.len()).then(|| unsafe { self.entries.add(block as usize) })
    }

    /// Slots in flight.
    fn busy(&mut self) -> u64 {
        let all = u64::MAX >> (64 - self.params.disk_depth);
        self.state().busy & all
    }

    /// Brings the device up, on vCPU 0 before any vCPU uses it.
    pub(crate) fn initialise(&mut self, platform: &mut impl Platform) {
        if self.index != 0 || self.phase().load(Ordering::Acquire) != 0 {
            return;
        }
        let gpa = abi::ARENA_GPA + self.params.disk_offset();
        let phase = match device::initialise(platform, &self.params, &self.layout, gpa) {
            Ok(()) => UP,
            Err(fault) => {
                self.fail(platform, fault);
                FAILED
            }
        };
        self.phase().store(phase, Ordering::Release);
    }

    fn is_usable(&mut self) -> bool {
        self.phase().load(Ordering::Acquire) == UP && self.state().broken == 0
    }

    /// Whether anything was ever wrong.
    pub(crate) fn is_wrong(&mut self) -> bool {
        !self.is_usable() || self.state().failures != 0
    }

    /// Looks at what came back, and issues what may be issued.
    #[inline]
    pub(crate) fn pump(&mut self, platform: &mut impl Platform, now: u64) -> Pace {
        if !self.is_usable() {
            return Pace::Never;
        }
        if self.state().random == 0 {
            let seed = mix(now ^ mix(self.params.seed ^ u64::from(self.index)));
            let state = self.state();
            (state.random, state.nonce) = (seed | 1, mix(seed));
        }
        self.poll(platform);
        self.top_up(platform, now)
    }

    /// Tells the VMM how many requests have come back, where it does not know yet.
    pub(crate) fn beat(&mut self, platform: &mut impl Platform) {
        let completed = self.state().counters.completed();
        if completed != self.state().told {
            self.state().told = completed;
            platform.disk_beat(completed);
        }
    }

    fn fail(&mut self, platform: &mut impl Platform, fault: Fault) {
        let vcpu = self.index;
        let state = self.state();
        if state.failures < MAX_TOLD {
            platform.disk_failed(&Failure { vcpu, fault });
        }
        state.failures = state.failures.saturating_add(1);
    }

    /// A failure after which nothing of the queue can be believed.
    fn break_down(&mut self, platform: &mut impl Platform, fault: Fault) {
        self.fail(platform, fault);
        self.state().broken = 1;
    }
}

#[cfg(test)]
mod tests;
