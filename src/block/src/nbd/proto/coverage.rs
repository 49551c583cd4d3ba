//! Which bytes of a read have come.

use super::Violation;

/// Runs of a read that may have come in one piece each, apart from one another. A server that
/// scatters a reply more than that is not to be had memory for.
const MAX_RUNS: usize = 1024;

/// Disjoint runs `[start, end)` of a read, in order, neighbours merged.
#[derive(Debug, Default)]
pub(super) struct Coverage(Vec<(u32, u32)>);

impl Coverage {
    /// Nothing has come. Keeps its memory.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// `[start, end)` has come.
    pub(super) fn add(&mut self, start: u32, end: u32) -> Result<(), Violation> {
        let at = self.0.partition_point(|run| run.0 < start);
        let joins_left = match at.checked_sub(1).map(|left| self.0[left]) {
            Some((_, left_end)) if left_end > start => return Err(TWICE),
            Some((_, left_end)) => left_end == start,
            None => false,
        };
        let joins_right = match self.0.get(at) {
            Some((right_start, _)) if *right_start < end => return Err(TWICE),
            Some((right_start, _)) => *right_start == end,
            None => false,
        };
        match (joins_left, joins_right) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = end,
            (false, true) => self.0[at].0 = start,
            (false, false) if self.0.len() == MAX_RUNS => {
                return Err(Violation("it scatters a reply over too many chunks"));
            }
            (false, false) => self.0.insert(at, (start, end)),
        }
        Ok(())
    }

    /// Whether all of `[0, len)` has come.
    pub(super) fn is_whole(&self, len: u32) -> bool {
        len == 0 || self.0 == [(0, len)]
    }
}

const TWICE: Violation = Violation("it sends bytes of a read twice");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_merge_and_never_overlap() {
        let mut all = Coverage::default();
        for (start, end) in [(8, 12), (0, 4), (4, 8), (20, 30), (12, 20)] {
            all.add(start, end).unwrap();
        }
        assert!(all.is_whole(30) && !all.is_whole(31) && all.0.len() == 1);
        for (start, end) in [(0, 1), (29, 31), (10, 12), (0, 40)] {
            assert_eq!(all.add(start, end), Err(TWICE));
        }
    }

    #[test]
    fn scattering_is_bounded() {
        let mut all = Coverage::default();
        let ended = (0..10_000).find_map(|i| all.add(i * 2, i * 2 + 1).err());
        assert!(ended.is_some() && all.0.len() == MAX_RUNS);
    }

    proptest! {
        #[test]
        fn it_is_as_a_bitmap_says(runs in prop::collection::vec((0u32..60, 1u32..10), 0..40)) {
            let (mut all, mut bits) = (Coverage::default(), [false; 70]);
            for (start, len) in runs {
                let range = start as usize..(start + len) as usize;
                let twice = bits[range.clone()].iter().any(|b| *b);
                prop_assert_eq!(all.add(start, start + len).is_err(), twice);
                if !twice {
                    bits[range].fill(true);
                }
            }
            let first = bits.iter().take_while(|b| **b).count();
            let whole = first > 0 && !bits[first..].contains(&true);
            prop_assert_eq!(whole, first > 0 && all.is_whole(first as u32));
        }
    }
}
