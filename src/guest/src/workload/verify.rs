//! Verifies: the disk by reading it back, then RAM by what it was filled with and the ledger.

use super::{CHECKING, PAGES_A_STEP, VERIFYING, WORKING, Worker};
use crate::abi;
use crate::disk::{Disk, Progress};
use crate::params::Kind;
use crate::pattern::{Pattern, WORDS, counter_word};
use crate::platform::Platform;

/// Results that are no page's.
const PAGES_END: u64 = u32::MAX as u64 - 3;

impl Worker {
    /// Begins what `command` asks for, if it is to verify.
    pub(super) fn obey(&mut self, platform: &mut impl Platform, command: u32) {
        if !matches!(command, abi::COMMAND_VERIFY | abi::COMMAND_VERIFY_SETTLED) {
            return;
        }
        let mut phase = VERIFYING;
        if let Some(disk) = &mut self.disk {
            disk.begin_check(command == abi::COMMAND_VERIFY_SETTLED, platform.tsc());
            phase = CHECKING;
        }
        let state = self.state();
        state.phase = phase;
        state.next = 0;
        state.result = u64::from(abi::VERIFY_OK);
    }

    /// Checks the disk for at most about a millisecond.
    pub(super) fn check_disk(&mut self, platform: &mut impl Platform) {
        let khz = self.params.tsc_khz;
        let beat = self.state().beat;
        loop {
            let now = platform.tsc();
            let progress = match &mut self.disk {
                Some(disk) => disk.check(platform, now),
                None => Progress::Done,
            };
            if progress == Progress::Done {
                self.state().phase = VERIFYING;
                break;
            }
            if now.wrapping_sub(beat) >= khz {
                self.state().beat = now;
                break;
            }
            match progress {
                Progress::Quiet => platform.sleep_us(1000),
                _ => core::hint::spin_loop(),
            }
        }
        let work = self.state().work;
        platform.heartbeat(work);
        if let Some(disk) = &mut self.disk {
            disk.beat(platform);
        }
    }

    /// What the counter of a page of the hot set must be.
    fn expected_counter(&mut self, page: u64) -> u64 {
        match self.params.kind {
            Kind::Idle | Kind::RewriteSame => 0,
            Kind::Dense => {
                let at = self.hot.from.wrapping_add(self.state().at);
                self.state().sweeps.wrapping_add(u64::from(page < at))
            }
            Kind::Sparse | Kind::Readmostly => {
                // SAFETY: a page of the hot set has a ledger entry.
                u64::from(unsafe { self.entry(page).read_volatile() })
            }
        }
    }

    fn is_right(&mut self, page: u64) -> bool {
        let counter = (page < self.params.ws_pages)
            .then(|| (counter_word(page), self.expected_counter(page)));
        let mut pattern = Pattern::of(&self.params, page);
        let mut wrong = 0;
        for i in 0..WORDS {
            let mut expected = pattern.next_word();
            if let Some((word, value)) = counter
                && word == i
            {
                expected = value;
            }
            // SAFETY: a page of this worker's share.
            wrong |= unsafe { self.word(page, i).read_volatile() } ^ expected;
        }
        wrong == 0
    }

    pub(super) fn verify(&mut self, platform: &mut impl Platform) {
        for _ in 0..PAGES_A_STEP {
            let n = self.state().next;
            let Some(page) = self.page(n) else {
                return self.conclude(platform);
            };
            if self.state().result == 0 && !self.is_right(page) {
                self.state().result = (page + 1).min(PAGES_END);
            }
            self.state().next = n + 1;
        }
    }

    fn conclude(&mut self, platform: &mut impl Platform) {
        if self.state().result == 0 && !self.ledger_fits() {
            self.state().result = u64::from(abi::VERIFY_LEDGER);
        }
        if self.state().result == 0 && !platform.registers_intact() {
            self.state().result = u64::from(abi::VERIFY_REGISTERS);
        }
        if self.state().result == 0 && self.disk.as_mut().is_some_and(Disk::is_wrong) {
            self.state().result = u64::from(abi::VERIFY_DISK);
        }
        let tsc = platform.tsc();
        let state = self.state();
        state.phase = WORKING;
        state.beat = tsc;
        let result = state.result as u32;
        platform.verified(result);
    }

    /// Whether all that was counted on the side sums up.
    fn ledger_fits(&mut self) -> bool {
        let hot = self.hot;
        let in_ledger = (hot.from..hot.to).fold(0u64, |sum, page| {
            // SAFETY: a page of the hot set has a ledger entry.
            sum.wrapping_add(u64::from(unsafe { self.entry(page).read_volatile() }))
        });
        let kind = self.params.kind;
        let state = self.state();
        let swept = state.sweeps.wrapping_mul(hot.len()).wrapping_add(state.at);
        match kind {
            Kind::Idle => state.work == 0,
            Kind::Dense | Kind::RewriteSame => state.work == swept,
            Kind::Readmostly => state.work == swept && state.writes == in_ledger,
            Kind::Sparse => state.work == in_ledger && state.writes == in_ledger,
        }
    }
}
