//! Reads all written blocks back. Content is checked as of any read.

use super::{Disk, Fault, device};
use crate::platform::Platform;

/// Blocks looked at in one call.
const BLOCKS_A_CALL: u64 = 1024;
/// Errors of reads after which a check gives up.
const MAX_ERRORS: u64 = 1000;
/// A check that waits for nothing gives up the rest when nothing came back for so long, and
/// altogether after so long: milliseconds.
const QUIET_MS: u64 = 250;
const LONGEST_MS: u64 = 5000;
/// When a check that waits begins to sleep between two looks.
const SLEEP_AFTER_MS: u64 = 10;

/// How a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Busy,
    /// Nothing has come back for a while.
    Quiet,
    Done,
}

impl Disk {
    /// Begins a check; a settled one first waits for all that is in flight.
    pub(crate) fn begin_check(&mut self, settled: bool, now: u64) {
        let state = self.state();
        state.check = super::state::Check {
            settled: settled.into(),
            began: now,
            moved: now,
            completed: state.counters.completed(),
            ..Default::default()
        };
    }

    /// Goes on with the check.
    pub(crate) fn check(&mut self, platform: &mut impl Platform, now: u64) -> Progress {
        if self.is_usable() {
            self.poll(platform);
        }
        // Again, as what came back may have been the end of it.
        if !self.is_usable() {
            return self.end_check();
        }
        let completed = self.state().counters.completed();
        if completed != self.state().check.completed {
            let check = &mut self.state().check;
            (check.completed, check.moved) = (completed, now);
        }
        let khz = self.params.tsc_khz;
        let check = &self.state().check;
        let quiet = now.wrapping_sub(check.moved) / khz;
        let age = now.wrapping_sub(check.began) / khz;
        let settled = check.settled != 0;
        let over = !settled && (quiet > QUIET_MS || age > LONGEST_MS);
        if over {
            return self.conclude(platform);
        }
        let drained = self.busy() & !self.state().check.reading == 0;
        if !settled || drained {
            self.read_back(platform);
        }
        let len = self.share.len();
        let pending = self.state().check.reading & self.busy() | self.state().check.again;
        let done = pending == 0 && self.state().check.next >= len && (!settled || drained);
        if done || (quiet > QUIET_MS && device::needs_reset(platform)) {
            self.conclude(platform)
        } else if quiet > SLEEP_AFTER_MS {
            Progress::Quiet
        } else {
            Progress::Busy
        }
    }

    /// Ends a check of a device that is in order.
    fn conclude(&mut self, platform: &mut impl Platform) -> Progress {
        if device::needs_reset(platform) {
            self.break_down(platform, Fault::NeedsReset);
        }
        self.end_check()
    }

    fn end_check(&mut self) -> Progress {
        // Reads still in flight are reads like any other.
        let check = &mut self.state().check;
        (check.reading, check.again) = (0, 0);
        Progress::Done
    }

    fn read_back(&mut self, platform: &mut impl Platform) {
        let mut added = false;
        let mut again = self.state().check.again & !self.busy();
        self.state().check.again = 0;
        while again != 0 {
            let slot = again.trailing_zeros();
            again &= again - 1;
            if u64::from(slot) < self.params.disk_depth {
                // SAFETY: a record of this vCPU's.
                let block = unsafe { self.slot(slot).read_volatile() }.block;
                added |= self.check_one(slot, block);
            }
        }
        for _ in 0..BLOCKS_A_CALL {
            let next = self.state().check.next;
            let Some(entry) = self.entry(next) else {
                break;
            };
            let Some(slot) = self.free_slot() else {
                break;
            };
            // SAFETY: an entry of this share.
            let entry = unsafe { entry.read_volatile() };
            if entry.is_written() && entry.writes() == 0 {
                added |= self.check_one(slot, next);
            }
            self.state().check.next = next + 1;
        }
        if added {
            self.publish(platform);
        }
    }

    fn check_one(&mut self, slot: u32, block: u64) -> bool {
        let issued = self.read(slot, block);
        if issued {
            self.state().check.reading |= 1 << slot;
        }
        issued
    }

    /// A read has come back: if it was a check's and gave an error, it is wanted again.
    pub(super) fn check_read(
        &mut self,
        platform: &mut impl Platform,
        slot: u32,
        block: u64,
        ok: bool,
    ) {
        let bit = 1 << slot;
        let check = &mut self.state().check;
        if check.reading & bit == 0 {
            return;
        }
        check.reading &= !bit;
        if ok || check.settled == 0 {
            return;
        }
        check.errors = check.errors.saturating_add(1);
        if check.errors < MAX_ERRORS {
            check.again |= bit;
        } else if check.errors == MAX_ERRORS {
            let block = self.share.from.wrapping_add(block);
            self.fail(platform, Fault::Unreadable { block });
        }
    }
}
