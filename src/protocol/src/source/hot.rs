//! Which pages change all the time, and which are left for the end because of that. Pure.

use crate::pages::{PageRange, PageSet, RamLayout};

/// Pages that are read in vain in the blackout, at most, for each hot one of their group.
const READ_IN_VAIN: u64 = 1;

/// Pages by how often they change.
#[derive(Debug)]
pub(super) struct HotPages {
    layout: RamLayout,
    /// Changed in both of the last passes, or left out of the last because of that, and may have
    /// changed again.
    hot: PageSet,
    /// Had changed when this pass came to them, and when the last one did.
    changed: PageSet,
    changed_before: PageSet,
    /// Hot pages that this pass leaves out.
    deferred: PageSet,
    /// See [`Self::again`].
    again: f64,
}

impl HotPages {
    /// None yet.
    pub(super) fn new(layout: &RamLayout) -> Self {
        let none = || PageSet::new(layout);
        Self {
            hot: none(),
            changed: none(),
            changed_before: none(),
            deferred: none(),
            layout: layout.clone(),
            again: 1.0,
        }
    }

    /// Pages that are hot.
    pub(super) fn len(&self) -> u64 {
        self.hot.len()
    }

    /// The share of them that is expected to change in the next pass, too: as large as the share that
    /// did in the last. Passes become shorter, and what changed in two of them need not change in each.
    pub(super) fn again(&self) -> f64 {
        self.again
    }

    /// Pages that had changed when this pass came to them.
    pub(super) fn note(&mut self, changed: PageRange) {
        self.changed.insert(changed);
    }

    /// A pass is over; `dirty` may have changed since.
    pub(super) fn end_pass(&mut self, dirty: &PageSet) {
        let none = || PageSet::new(&self.layout);
        let deferred = std::mem::replace(&mut self.deferred, none());
        let changed = std::mem::replace(&mut self.changed, none());
        let were = match self.hot.len() {
            0 => self.changed_before.len(),
            hot => hot,
        };
        self.hot = changed.clone();
        self.hot.intersect(&self.changed_before);
        self.hot.union(&deferred);
        self.hot.intersect(dirty);
        self.again = (self.hot.len() as f64 / were.max(1) as f64).min(1.0);
        self.changed_before = changed;
        self.changed_before.union(&deferred);
    }

    /// Takes what is left for the end out of `dirty`: hot pages. Reading a page protects all of its
    /// group (of `group_pages`, 1 where pages are protected one by one), and the guest would be
    /// notified all the same when it writes the hot ones; so where only hot pages of a group have
    /// changed, and are at least half of what may have, its other pages are left out with them.
    pub(super) fn leave_out(&mut self, dirty: &mut PageSet, group_pages: u64) {
        self.deferred = self.hot.clone();
        let mut left_out = self.hot.clone();
        let mut cold = self.changed_before.clone();
        cold.subtract(&self.hot);
        cold.intersect(dirty);
        for group in groups(&self.layout, group_pages) {
            let hot = self.hot.count(group);
            let others = dirty.count(group) - hot;
            if hot > 0 && others > 0 && others <= hot * READ_IN_VAIN && cold.count(group) == 0 {
                left_out.insert(group);
            }
        }
        dirty.subtract(&left_out);
    }
}

/// All groups, cut to their regions; none where pages stand by themselves.
fn groups(layout: &RamLayout, pages: u64) -> impl Iterator<Item = PageRange> {
    let regions = layout.regions().iter().filter(move |_| pages > 1);
    regions.flat_map(move |region| {
        (region.start..region.end())
            .step_by(usize::try_from(pages).unwrap_or(usize::MAX))
            .map(move |start| PageRange::new(start, pages.min(region.end() - start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u64, u64)]) -> PageSet {
        let mut set = PageSet::new(&layout());
        for &(start, count) in ranges {
            set.insert(PageRange::new(start, count));
        }
        set
    }

    fn layout() -> RamLayout {
        RamLayout::try_from(vec![PageRange::new(0, 100), PageRange::new(512, 64)]).unwrap()
    }

    /// What is left of `dirty` after two passes that found `changed`, by groups of so many pages.
    fn left(passes: [&[(u64, u64)]; 2], dirty: &[(u64, u64)], group_pages: u64) -> PageSet {
        let mut pages = HotPages::new(&layout());
        for changed in passes {
            for &(start, count) in changed {
                pages.note(PageRange::new(start, count));
            }
            pages.end_pass(&set(dirty));
        }
        let mut dirty = set(dirty);
        pages.leave_out(&mut dirty, group_pages);
        dirty
    }

    #[test]
    fn what_changed_in_both_passes_is_left_out() {
        let left = left([&[(3, 5)], &[(6, 5)]], &[(0, 100)], 1);
        assert_eq!(left, set(&[(0, 6), (8, 92)]));
    }

    #[test]
    fn neighbours_are_left_out_with_groups_that_are_hot_but_no_others() {
        // The first group is hot, and the fourth, cut to its region; of the second, a page changed
        // only once; of the third, too few are hot; the last one's are not dirty.
        let before: &[_] = &[(0, 16), (32, 16), (64, 15), (96, 2), (512, 4)];
        let last: &[_] = &[(0, 16), (32, 17), (64, 15), (96, 2), (512, 4)];
        let left = left([before, last], &[(0, 100)], 32);
        assert_eq!(left, set(&[(48, 16), (79, 17)]));
    }

    #[test]
    fn hot_pages_that_become_fewer_are_expected_to_become_fewer() {
        let mut pages = HotPages::new(&layout());
        let dirty = set(&[(0, 100)]);
        for (changed, again) in [(80, 0.0), (40, 0.5), (20, 0.5), (20, 1.0), (40, 1.0)] {
            pages.note(PageRange::new(0, changed));
            pages.end_pass(&dirty);
            assert!((pages.again() - again).abs() < 1e-9, "{changed}");
        }
    }

    #[test]
    fn what_was_left_out_stays_hot_while_it_may_have_changed() {
        let mut pages = HotPages::new(&layout());
        for _ in 0..2 {
            pages.note(PageRange::new(0, 20));
            pages.end_pass(&set(&[(0, 32)]));
        }
        let mut dirty = set(&[(0, 32), (64, 3)]);
        pages.leave_out(&mut dirty, 32);
        assert_eq!(dirty, set(&[(64, 3)]));
        // Neighbours were left out, too, but are not hot for that.
        pages.end_pass(&set(&[(0, 32)]));
        assert_eq!(pages.len(), 20);
        pages.end_pass(&set(&[(0, 10)]));
        assert_eq!(pages.len(), 0);
    }
}
