//! Guest memory as versions of pages, and what writes to it.
//!
//! A page that was touched before the migration has version 1; every write makes it one newer.
//! Only newer pages cost memory, so that a guest of 1 TiB fits.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_protocol::{PageRange, PageSet, RamLayout};

use crate::recording::Recording;

/// A small generator (SplitMix64): the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Numbers that follow from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub const fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }
}

/// Versions of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    present: PageSet,
    newer: BTreeMap<u64, u32>,
}

impl Memory {
    /// Memory that nobody has touched.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        Self {
            present: PageSet::new(layout),
            newer: BTreeMap::new(),
        }
    }

    /// Pages that exist.
    #[must_use]
    pub fn present(&self) -> &PageSet {
        &self.present
    }

    /// The version of a page; 0 where it does not exist.
    #[must_use]
    pub fn version(&self, gfn: u64) -> u32 {
        let here = u32::from(self.present.contains(gfn));
        self.newer.get(&gfn).copied().unwrap_or(here)
    }

    /// Brings `range` into being, at version 1.
    pub fn touch(&mut self, range: PageRange) {
        self.present.insert(range);
    }

    /// A write to one page.
    pub fn write(&mut self, gfn: u64) {
        if self.present.contains(gfn) {
            *self.newer.entry(gfn).or_insert(1) += 1;
        } else {
            self.present.insert(PageRange::new(gfn, 1));
        }
    }

    /// The pages of `range` that are newer than version 1.
    pub fn newer(&self, range: PageRange) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.newer.range(range.frames()).map(|(g, v)| (*g, *v))
    }

    /// Overwrites `ranges` by what was read elsewhere.
    pub fn apply(&mut self, ranges: &[PageRange], newer: &[(u64, u32)]) {
        for range in ranges {
            self.present.insert(*range);
            let old: Vec<u64> = self.newer(*range).map(|(gfn, _)| gfn).collect();
            for gfn in old {
                self.newer.remove(&gfn);
            }
        }
        self.newer.extend(newer.iter().copied());
    }

    /// The first page that differs, and both versions (0: not there).
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(u64, u32, u32)> {
        if self == other {
            return None;
        }
        let mut frames: Vec<u64> = self
            .newer
            .keys()
            .chain(other.newer.keys())
            .copied()
            .collect();
        let mut runs = |set: &PageSet| set.for_each_run(|r| frames.extend(r.frames()));
        runs(&self.present);
        runs(&other.present);
        frames.sort_unstable();
        let differs = |gfn: &u64| self.version(*gfn) != other.version(*gfn);
        let gfn = frames.into_iter().find(differs)?;
        Some((gfn, self.version(gfn), other.version(gfn)))
    }
}

/// How the guest writes while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Not at all.
    Idle,
    /// Anywhere in RAM.
    Uniform {
        /// Pages per second of virtual time.
        rate: u64,
    },
    /// Again and again in the first `pages` of RAM, and one write in 64 anywhere.
    Hot {
        /// Size of the hot set.
        pages: u64,
        /// Pages per second of virtual time.
        rate: u64,
    },
    /// As a real guest did.
    Recorded(&'static Recording),
}

impl Writes {
    pub(super) const fn rate(self) -> u64 {
        match self {
            Self::Idle | Self::Recorded(_) => 0,
            Self::Uniform { rate } | Self::Hot { rate, .. } => rate,
        }
    }

    pub(super) fn next_page(self, layout: &RamLayout, rng: &mut Rng) -> u64 {
        let all = layout.pages();
        let index = match self {
            Self::Hot { pages, .. } if rng.below(64) != 0 => rng.below(pages.min(all)),
            _ => rng.below(all),
        };
        nth_page(layout, index)
    }
}

/// The page with this index, counted over all regions.
fn nth_page(layout: &RamLayout, mut index: u64) -> u64 {
    for region in layout.regions() {
        if index < region.count {
            return region.start + index;
        }
        index -= region.count;
    }
    layout.regions()[0].start
}

const NANOS: u64 = 1_000_000_000;

/// The guest at the source, with its tracker.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) memory: Memory,
    /// Perhaps dirty: written since it was last protected.
    dirty: PageSet,
    /// A write costs a notification, and makes the page's group writable.
    protected: PageSet,
    /// Was protected in this pass.
    tried: PageSet,
    layout: RamLayout,
    tracking: bool,
    notifications: u64,
    group_pages: u64,
    /// Pages that may become dirty in a second, and what of it is left, in billionths.
    throttle: Option<u64>,
    allowance: u64,
    rng: Rng,
    /// Writes owed for time too short for one.
    owed: u64,
    /// How far a recording was written.
    ran: Duration,
}

impl Guest {
    pub(super) fn new(layout: &RamLayout, touched: u64, group_pages: u64, seed: u64) -> Self {
        let mut memory = Memory::new(layout);
        let mut left = touched;
        for region in layout.regions() {
            let n = left.min(region.count);
            memory.touch(PageRange::new(region.start, n));
            left -= n;
        }
        Self {
            memory,
            dirty: PageSet::new(layout),
            protected: PageSet::new(layout),
            tried: PageSet::new(layout),
            layout: layout.clone(),
            tracking: false,
            notifications: 0,
            group_pages: group_pages.max(1),
            throttle: None,
            allowance: 0,
            rng: Rng::new(seed),
            owed: 0,
            ran: Duration::ZERO,
        }
    }

    pub(super) fn write(&mut self, gfn: u64) {
        self.memory.write(gfn);
        if self.tracking && self.protected.contains(gfn) {
            let group = self.group(gfn);
            for page in group.frames() {
                if self.memory.present.contains(page) {
                    self.dirty.insert(PageRange::new(page, 1));
                }
            }
            self.protected.remove(group);
            self.notifications += 1;
        } else if self.tracking {
            self.dirty.insert(PageRange::new(gfn, 1));
        }
    }

    fn group(&self, gfn: u64) -> PageRange {
        PageRange::new(gfn - gfn % self.group_pages, self.group_pages)
    }

    /// Runs for `nanos`.
    pub(super) fn run(&mut self, writes: Writes, layout: &RamLayout, nanos: u64) {
        self.allowance += self.throttle.unwrap_or(0) * nanos;
        if let Writes::Recorded(recording) = writes {
            return self.replay(recording, Duration::from_nanos(nanos));
        }
        self.owed += writes.rate() * nanos;
        while self.owed >= NANOS {
            self.owed -= NANOS;
            let gfn = writes.next_page(layout, &mut self.rng);
            if self.must_wait(gfn) {
                // The writer stands still for the rest of the slice.
                self.owed = 0;
                return;
            }
            self.write(gfn);
        }
    }

    /// Writes what was written in the next `time` of the recording.
    fn replay(&mut self, recording: &Recording, time: Duration) {
        let until = self.ran + time;
        for (at, gfn) in recording.between(self.ran, until) {
            if self.must_wait(gfn) {
                // It goes on here when it may.
                self.ran = at;
                return;
            }
            self.write(gfn);
        }
        self.ran = until;
    }

    /// Whether the answer to a write to this page is held back; if not, it is paid for.
    fn must_wait(&mut self, gfn: u64) -> bool {
        if self.throttle.is_none() || !self.tracking || !self.protected.contains(gfn) {
            return false;
        }
        let price = NANOS * self.group_pages;
        let wait = self.allowance < price;
        if !wait {
            self.allowance -= price;
        }
        wait
    }

    /// From now on so many pages may become dirty in a second.
    pub(super) fn throttle(&mut self, pages_per_second: Option<u64>) {
        self.throttle = pages_per_second;
        self.allowance = 0;
    }

    /// What may have changed: at first, all there is. Nothing is cleared.
    pub(super) fn harvest(&mut self, first: bool) -> (PageSet, u64) {
        if first {
            self.tracking = true;
            self.dirty = self.memory.present.clone();
            self.protected = PageSet::new(&self.layout);
        }
        self.tried = PageSet::new(&self.layout);
        (self.dirty.clone(), std::mem::take(&mut self.notifications))
    }

    /// From now on, writes to these pages are noticed again, and cost a notification, as do writes
    /// to others of their groups. A group that was written since it was protected is not protected
    /// again in the same pass.
    pub(super) fn protect(&mut self, ranges: &[PageRange]) {
        for gfn in ranges.iter().flat_map(PageRange::frames) {
            if self.group_pages == 1 || !self.tried.contains(gfn) {
                self.protected.insert(self.group(gfn));
                self.tried.insert(self.group(gfn));
            }
            if self.protected.contains(gfn) {
                self.dirty.remove(PageRange::new(gfn, 1));
            }
        }
    }

    pub(super) fn stop_tracking(&mut self) {
        self.tracking = false;
    }

    /// A copy of the pages, as their versions.
    pub(super) fn read(&self, ranges: &[PageRange]) -> Vec<(u64, u32)> {
        ranges.iter().flat_map(|r| self.memory.newer(*r)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_differs_in_one_version_is_found_to_differ() {
        let layout = RamLayout::try_from(vec![PageRange::new(0, 10)]).unwrap();
        let mut a = Memory::new(&layout);
        a.touch(PageRange::new(0, 4));
        let mut b = Memory::new(&layout);
        b.apply(&[PageRange::new(0, 4)], &[]);
        assert_eq!(a.first_difference(&b), None);
        a.write(2);
        assert_eq!(a.first_difference(&b), Some((2, 2, 1)));
        b.apply(&[PageRange::new(2, 1)], &[(2, 2)]);
        assert_eq!(a.first_difference(&b), None);
        a.write(9);
        assert_eq!(a.first_difference(&b), Some((9, 1, 0)));
        b.apply(&[PageRange::new(9, 1)], &[]);
        b.apply(&[PageRange::new(2, 1)], &[]);
        assert_eq!(a.first_difference(&b), Some((2, 2, 1)));
    }
}
