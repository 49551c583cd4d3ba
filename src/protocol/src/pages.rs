//! Pages, ranges of pages and sets of pages: the only way the core talks about guest RAM.
//!
//! Nothing here holds page contents. A [`PageSet`] is a bitmap over a [`RamLayout`]: 32 MiB for a
//! guest of 1 TiB.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes in a guest page (x86 base page).
pub const PAGE_SIZE: u64 = 4096;
/// Most RAM regions accepted.
pub const MAX_REGIONS: usize = 64;
/// One past the highest guest frame accepted: 52 bits of physical address.
pub const MAX_GFN: u64 = 1 << 40;

/// A run of guest pages: `count` pages from guest frame number `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First guest frame number (guest-physical address ÷ [`PAGE_SIZE`]).
    pub start: u64,
    /// Number of pages.
    pub count: u64,
}

impl PageRange {
    /// A run of `count` pages from frame `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Self {
        Self { start, count }
    }

    /// One past the last frame; saturates, so that hostile input cannot overflow it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// Length in bytes; saturates.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE)
    }

    /// Guest-physical address of the first byte; saturates.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        self.start.saturating_mul(PAGE_SIZE)
    }

    /// Whether frame `gfn` lies in the run.
    #[must_use]
    pub const fn contains(&self, gfn: u64) -> bool {
        gfn >= self.start && gfn < self.end()
    }

    /// Whether all of `other` lies in the run.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// The frames of the run.
    pub fn frames(&self) -> std::ops::Range<u64> {
        self.start..self.end()
    }
}

/// A layout that cannot be RAM.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("RAM layout refused: {0}")]
pub struct BadLayout(&'static str);

/// Where a VM's RAM lies: runs of pages, ascending, not overlapping, none empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<PageRange>", into = "Vec<PageRange>")]
pub struct RamLayout(Vec<PageRange>);

impl TryFrom<Vec<PageRange>> for RamLayout {
    type Error = BadLayout;

    fn try_from(regions: Vec<PageRange>) -> Result<Self, BadLayout> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(BadLayout("no region, or too many"));
        }
        let mut free_from = 0;
        for r in &regions {
            if r.count == 0 || r.start < free_from || r.end() > MAX_GFN {
                return Err(BadLayout(
                    "regions empty, out of order, overlapping or too high",
                ));
            }
            free_from = r.end();
        }
        Ok(Self(regions))
    }
}

impl From<RamLayout> for Vec<PageRange> {
    fn from(layout: RamLayout) -> Self {
        layout.0
    }
}

impl RamLayout {
    /// The regions, ascending.
    #[must_use]
    pub fn regions(&self) -> &[PageRange] {
        &self.0
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|r| r.count).sum()
    }

    /// Whether all of `range` lies in one region.
    #[must_use]
    pub fn covers(&self, range: &PageRange) -> bool {
        range.count > 0 && self.0.iter().any(|r| r.covers(range))
    }
}

/// Words of 64 pages of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bits {
    range: PageRange,
    words: Vec<u64>,
}

impl Bits {
    /// First bit and number of those for `range ∩ self.range`.
    fn part(&self, range: PageRange) -> (u64, u64) {
        let from = range.start.max(self.range.start);
        let to = range.end().min(self.range.end());
        (from - self.range.start, to.saturating_sub(from))
    }

    /// Calls `f(word, mask)` for each word that `range ∩ self.range` touches.
    fn each_word(&mut self, range: PageRange, mut f: impl FnMut(&mut u64, u64)) {
        let (first, count) = self.part(range);
        each_word(first, count, |word, mask| f(&mut self.words[word], mask));
    }
}

/// Calls `f(word, mask)` for each word of 64 bits that holds any of the `count` bits from `first`
/// on; the mask has those.
pub fn each_word(first: u64, count: u64, mut f: impl FnMut(usize, u64)) {
    let (mut at, end) = (first, first + count);
    while at < end {
        let bit = at % 64;
        let n = (64 - bit).min(end - at);
        f((at / 64) as usize, (u64::MAX >> (64 - n)) << bit);
        at += n;
    }
}

/// A set of guest pages. Pages outside the layout are never members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    regions: Vec<Bits>,
    len: u64,
}

/// Where a sweep over a [`PageSet`] has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    region: usize,
    word: usize,
}

impl PageSet {
    /// The empty set over `layout`.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        let regions = layout.regions().iter().map(|&range| Bits {
            range,
            words: vec![0; range.count.div_ceil(64) as usize],
        });
        Self {
            regions: regions.collect(),
            len: 0,
        }
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Members in `range`.
    #[must_use]
    pub fn count(&self, range: PageRange) -> u64 {
        let mut count = 0;
        for bits in &self.regions {
            let (first, n) = bits.part(range);
            each_word(first, n, |word, mask| {
                count += u64::from((bits.words[word] & mask).count_ones());
            });
        }
        count
    }

    /// Adds the pages of `range` that the layout has.
    pub fn insert(&mut self, range: PageRange) {
        let mut added = 0;
        for bits in &mut self.regions {
            bits.each_word(range, |word, mask| {
                added += u64::from((mask & !*word).count_ones());
                *word |= mask;
            });
        }
        self.len += added;
    }

    /// Takes the pages of `range` out.
    pub fn remove(&mut self, range: PageRange) {
        let mut removed = 0;
        for bits in &mut self.regions {
            bits.each_word(range, |word, mask| {
                removed += u64::from((mask & *word).count_ones());
                *word &= !mask;
            });
        }
        self.len -= removed;
    }

    /// Whether page `gfn` is a member.
    #[must_use]
    pub fn contains(&self, gfn: u64) -> bool {
        self.regions.iter().any(|bits| {
            bits.range.contains(gfn) && {
                let at = gfn - bits.range.start;
                bits.words[(at / 64) as usize] >> (at % 64) & 1 == 1
            }
        })
    }

    /// Adds every member of `other`, which must be over the same layout (others are ignored).
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.regions.iter_mut().zip(&other.regions) {
            if mine.range != theirs.range {
                continue;
            }
            for (a, b) in mine.words.iter_mut().zip(&theirs.words) {
                self.len += u64::from((b & !*a).count_ones());
                *a |= b;
            }
        }
    }

    /// Takes every member of `other`, which must be over the same layout, out.
    pub fn subtract(&mut self, other: &Self) {
        self.retain(other, |mine, theirs| mine & !theirs);
    }

    /// Takes every page out that is not in `other`, which must be over the same layout.
    pub fn intersect(&mut self, other: &Self) {
        self.retain(other, |mine, theirs| mine & theirs);
    }

    fn retain(&mut self, other: &Self, keep: impl Fn(u64, u64) -> u64) {
        for (mine, theirs) in self.regions.iter_mut().zip(&other.regions) {
            if mine.range != theirs.range {
                continue;
            }
            for (a, b) in mine.words.iter_mut().zip(&theirs.words) {
                let kept = keep(*a, *b);
                self.len -= u64::from((*a & !kept).count_ones());
                *a &= kept;
            }
        }
    }

    /// Calls `found` for every run of members, ascending; runs end at 64-page boundaries.
    pub fn for_each_run(&self, mut found: impl FnMut(PageRange)) {
        for bits in &self.regions {
            for (i, &word) in bits.words.iter().enumerate() {
                each_run(word, |bit, n| {
                    found(PageRange::new(bits.range.start + i as u64 * 64 + bit, n));
                });
            }
        }
    }

    /// Takes up to `max_pages` members from `cursor` on out of the set, ascending, in at most
    /// `max_ranges` runs, and moves the cursor there. None when the sweep has come to the end.
    pub fn take(
        &mut self,
        cursor: &mut Cursor,
        max_pages: u64,
        max_ranges: usize,
    ) -> Option<Vec<PageRange>> {
        let mut out: Vec<PageRange> = Vec::new();
        let mut left = max_pages;
        'sweep: while let Some(bits) = self.regions.get_mut(cursor.region) {
            while let Some(word) = bits.words.get_mut(cursor.word) {
                while *word != 0 {
                    if left == 0 {
                        break 'sweep;
                    }
                    let bit = u64::from(word.trailing_zeros());
                    let n = u64::from((*word >> bit).trailing_ones()).min(left);
                    let start = bits.range.start + cursor.word as u64 * 64 + bit;
                    let full = out.len() == max_ranges;
                    match out.last_mut() {
                        Some(last) if last.end() == start => last.count += n,
                        _ if full => break 'sweep,
                        _ => out.push(PageRange::new(start, n)),
                    }
                    let mask = if n == 64 {
                        u64::MAX
                    } else {
                        ((1 << n) - 1) << bit
                    };
                    *word &= !mask;
                    self.len -= n;
                    left -= n;
                }
                cursor.word += 1;
            }
            cursor.region += 1;
            cursor.word = 0;
            // A chunk stays within one region.
            if !out.is_empty() {
                break;
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

fn each_run(mut word: u64, mut found: impl FnMut(u64, u64)) {
    while word != 0 {
        let bit = u64::from(word.trailing_zeros());
        let n = u64::from((word >> bit).trailing_ones());
        found(bit, n);
        let mask = if n == 64 {
            u64::MAX
        } else {
            ((1 << n) - 1) << bit
        };
        word &= !mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn layout() -> RamLayout {
        RamLayout::try_from(vec![PageRange::new(0, 300), PageRange::new(512, 200)]).unwrap()
    }

    #[test]
    fn sets_are_subtracted_and_intersected() {
        let set = |start, count| {
            let mut set = PageSet::new(&layout());
            set.insert(PageRange::new(start, count));
            set
        };
        let mut a = set(10, 600);
        a.subtract(&set(100, 450));
        assert_eq!(
            (a.len(), a.contains(99), a.contains(100)),
            (90 + 60, true, false)
        );
        a.intersect(&set(0, 20));
        assert_eq!((a.len(), a.contains(19), a.contains(20)), (10, true, false));
    }

    #[test]
    fn layouts_that_cannot_be_ram_are_refused() {
        let bad = |ranges: &[(u64, u64)]| {
            let ranges: Vec<_> = ranges.iter().map(|&(s, c)| PageRange::new(s, c)).collect();
            RamLayout::try_from(ranges).is_err()
        };
        assert!(bad(&[]));
        assert!(bad(&[(0, 0)]));
        assert!(bad(&[(0, 10), (9, 1)]));
        assert!(bad(&[(10, 1), (0, 1)]));
        assert!(bad(&[(u64::MAX, 2)]));
        assert!(!bad(&[(0, 10), (10, 1)]));
    }

    proptest! {
        #[test]
        fn a_page_set_is_a_set(ops in prop::collection::vec((0u64..800, 1u64..120, any::<bool>()), 0..60),
                               max in 1u64..100, ranges in 1usize..20) {
            let layout = layout();
            let mut set = PageSet::new(&layout);
            let mut model = BTreeSet::new();
            for (start, count, add) in ops {
                let range = PageRange::new(start, count);
                if add { set.insert(range) } else { set.remove(range) }
                for gfn in range.frames() {
                    if layout.covers(&PageRange::new(gfn, 1)) {
                        if add { model.insert(gfn); } else { model.remove(&gfn); }
                    }
                }
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert!((0..800).all(|g| set.contains(g) == model.contains(&g)));
            let (from, count) = (max * 3, 150);
            let members = model.range(from..from + count).count() as u64;
            prop_assert_eq!(set.count(PageRange::new(from, count)), members);
            let mut runs = BTreeSet::new();
            set.for_each_run(|r| runs.extend(r.frames()));
            prop_assert_eq!(&runs, &model);
            let mut taken = Vec::new();
            let mut cursor = Cursor::default();
            while let Some(chunk) = set.take(&mut cursor, max, ranges) {
                prop_assert!(chunk.len() <= ranges);
                prop_assert!(chunk.iter().map(|r| r.count).sum::<u64>() <= max);
                prop_assert!(chunk.iter().all(|r| layout.covers(r)));
                taken.extend(chunk.iter().flat_map(PageRange::frames));
            }
            prop_assert!(set.is_empty());
            prop_assert_eq!(taken, model.into_iter().collect::<Vec<_>>());
        }
    }
}
