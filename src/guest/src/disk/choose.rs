//! Which request is next, and when.

use super::{Disk, Pace};
use crate::platform::Platform;

/// Random blocks looked at for one that nothing is in flight for.
const TRIES: u32 = 8;
/// Shortest wait for the rate, in microseconds.
const SHORTEST_US: u64 = 50;
/// How far behind the rate may be before what it owes is dropped, in milliseconds.
const BEHIND_MS: u64 = 100;

/// What a request is to be, before it has a slot.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Read(u64),
    Write(u64),
    Flush,
}

impl Disk {
    /// Issues requests until as many as may be are in flight. Tells the device once.
    pub(super) fn top_up(&mut self, platform: &mut impl Platform, now: u64) -> Pace {
        let (mut added, mut pace) = (false, Pace::Now);
        while let Some(slot) = self.free_slot() {
            let wait = self.wait(now);
            if wait != 0 {
                let us = wait.saturating_mul(1000) / self.params.tsc_khz;
                pace = Pace::Later(us.clamp(SHORTEST_US, 1000) as u32);
                break;
            }
            let issued = match self.choose() {
                None => false,
                Some(Wish::Read(block)) => self.read(slot, block),
                Some(Wish::Write(block)) => self.write(slot, block),
                Some(Wish::Flush) => {
                    self.flush(slot);
                    true
                }
            };
            if !issued {
                break;
            }
            self.spend(now);
            added = true;
        }
        if added {
            self.publish(platform);
        }
        pace
    }

    /// Ticks between two requests, 0 for no limit.
    fn interval(&self) -> u64 {
        match self.params.disk_rate {
            0 => 0,
            rate => (self.params.tsc_khz.saturating_mul(1000) / rate).max(1),
        }
    }

    /// Ticks until the rate allows a request.
    fn wait(&mut self, now: u64) -> u64 {
        let interval = self.interval();
        if interval == 0 {
            return 0;
        }
        let ahead = self.state().due.wrapping_sub(now);
        // Far ahead is the past, or another host's clock.
        if ahead > interval { 0 } else { ahead }
    }

    fn spend(&mut self, now: u64) {
        let interval = self.interval();
        if interval == 0 {
            return;
        }
        let behind = now.wrapping_sub(self.state().due);
        let late = behind > interval.saturating_add(BEHIND_MS * self.params.tsc_khz);
        let from = if late { now } else { self.state().due };
        self.state().due = from.wrapping_add(interval);
    }

    fn random(&mut self) -> u64 {
        let mut random = self.state().random;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.state().random = random;
        random
    }

    fn choose(&mut self) -> Option<Wish> {
        let every = self.params.disk_flush;
        if every != 0 && self.state().unflushed >= every {
            self.state().unflushed = 0;
            return Some(Wish::Flush);
        }
        let dice = self.random();
        // Slow writes leave their share of the slots to reads.
        let writes = (self.state().writing & self.busy()).count_ones();
        let most = (self.params.disk_depth * self.params.disk_write).div_ceil(100);
        let is_write = (dice >> 48) % 100 < self.params.disk_write && u64::from(writes) < most;
        let overlaps = (dice >> 32 & 0xffff) % 100 < self.params.disk_overlap;
        let wish = match overlaps.then(|| self.being_written(dice)).flatten() {
            Some(block) => self.beside(block, is_write),
            None => self.undisturbed(is_write),
        };
        if let Some(Wish::Write(_)) = wish {
            let state = self.state();
            state.unflushed = state.unflushed.saturating_add(1);
        }
        wish
    }

    /// A block that a write is in flight for.
    fn being_written(&mut self, dice: u64) -> Option<u64> {
        let writing = self.state().writing & self.busy();
        let turn = (dice as u32) % 64;
        let slot = (writing.rotate_right(turn).trailing_zeros() + turn) % 64;
        if writing >> slot & 1 == 0 {
            return None;
        }
        // SAFETY: a record of this vCPU's: what is in flight is below `disk_depth`.
        Some(unsafe { self.slot(slot).read_volatile() }.block)
    }

    fn beside(&self, block: u64, is_write: bool) -> Option<Wish> {
        // SAFETY: an entry of this share.
        let entry = unsafe { self.entry(block)?.read_volatile() };
        let room = entry.writes() < super::ledger::MAX_LIVE;
        Some(if is_write && room {
            Wish::Write(block)
        } else {
            Wish::Read(block)
        })
    }

    /// A random block that nothing is in flight for but, where it is to be read, reads.
    fn undisturbed(&mut self, is_write: bool) -> Option<Wish> {
        for _ in 0..TRIES {
            let random = self.random();
            let block = ((random >> 32) * self.share.len()) >> 32;
            // SAFETY: an entry of this share.
            let entry = unsafe { self.entry(block)?.read_volatile() };
            if entry.writes() == 0 && (entry.reads() == 0 || !is_write) {
                return Some(if is_write {
                    Wish::Write(block)
                } else {
                    Wish::Read(block)
                });
            }
        }
        None
    }
}
