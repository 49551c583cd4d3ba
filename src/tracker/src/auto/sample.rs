//! How the guest at hand writes: a short look at a part of its RAM.
//!
//! What a page costs a tracker depends on how many of its neighbours are written too. So some 200
//! MiB, spread over all RAM, are watched for some 30 ms by a tracker that tells of single
//! pages, in two looks: what grows from one to the other is taken to go on for a pass.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use vmferry_protocol::PageRange;

use super::{Cost, GROUP};
use crate::{DirtyTracker, TrackerError};

/// About so many groups are watched, where there are more: each page written in them costs the guest a notification.
const GROUPS: u64 = 96;
/// From arming them to the first look, and from there to the second.
const FIRST: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_millis(20);
/// What a page that is read for nothing takes from the guest on the same machine, in nanoseconds:
/// memory and caches (bench `trackers`, the sparse guest: 400 ms more with groups, in three passes
/// of 512 of them).
const READ_NS: f64 = 500.0;
/// A pass takes so many times as long as it is from the first look to the second.
const PASS: u64 = 20;

/// What a guest wrote in groups of 2 MiB that were watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Groups watched.
    pub watched: u64,
    /// Groups of which these were chosen: all that exist as a whole.
    pub of: u64,
    /// Of each that was written: pages written until the first look, and until the second.
    pub written: Vec<(u64, u64)>,
}

impl Sample {
    /// Watches a running guest with `tracker`, which is not used otherwise. Blocks for some 30 ms.
    ///
    /// # Errors
    /// The tracker's; it is stopped then, too.
    pub fn take(tracker: &dyn DirtyTracker) -> Result<Self, TrackerError> {
        tracker.start()?;
        let taken = Self::watch(tracker);
        tracker.stop();
        taken
    }

    fn watch(tracker: &dyn DirtyTracker) -> Result<Self, TrackerError> {
        let mut pieces = Vec::new();
        tracker.harvest(&mut |run| pieces.extend(in_groups(run)))?;
        let (chosen, of) = choose(pieces);
        for piece in &chosen {
            tracker.protect(*piece)?;
        }
        thread::sleep(FIRST);
        let first = look(tracker, &chosen)?;
        thread::sleep(SECOND);
        let second = look(tracker, &chosen)?;
        let written = chosen.iter().filter_map(|piece| {
            let group = piece.start / GROUP;
            let until = |look: &HashMap<u64, u64>| look.get(&group).copied().unwrap_or(0);
            // What was found once is found again, as nothing is protected anew.
            let written = (until(&first), until(&second));
            (written.1 > 0).then_some(written)
        });
        Ok(Self {
            watched: chosen.len() as u64,
            of,
            written: written.collect(),
        })
    }

    /// What the guest is expected to lose in these groups in a pass with a tracker of that cost,
    /// in nanoseconds; `whole` where all pages of a group are read if one was written.
    #[must_use]
    pub fn loss_ns(&self, cost: Cost, whole: bool) -> f64 {
        let unwritten_ns = if whole { READ_NS } else { 0.0 };
        let all_ns = cost.dense_ns * GROUP as f64;
        let page_ns = (all_ns - cost.sparse_ns) / (GROUP - 1) as f64;
        let group = |&(first, second): &(u64, u64)| {
            let grows = second.saturating_sub(first).saturating_mul(PASS);
            let pages = second.saturating_add(grows).clamp(1, GROUP);
            let written_ns = cost.sparse_ns + page_ns * (pages - 1) as f64;
            written_ns + unwritten_ns * (GROUP - pages) as f64
        };
        self.written.iter().map(group).sum()
    }

    /// How many times as much RAM there is as was watched.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.of as f64 / self.watched.max(1) as f64
    }

    /// Pages written.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.written.iter().map(|(_, second)| second).sum()
    }
}

/// A run, cut where groups begin.
fn in_groups(run: PageRange) -> impl Iterator<Item = PageRange> {
    let mut at = run.start;
    std::iter::from_fn(move || {
        let end = ((at / GROUP + 1) * GROUP).min(run.end());
        let piece = PageRange::new(at, end - at);
        at = end;
        (piece.count > 0).then_some(piece)
    })
}

/// Whole groups, about [`GROUPS`] of them, from all over, and how many there are; a guest's stride
/// is none of this choice's.
fn choose(pieces: Vec<PageRange>) -> (Vec<PageRange>, u64) {
    let whole: Vec<PageRange> = pieces.into_iter().filter(|p| p.count == GROUP).collect();
    let all = whole.len() as u64;
    let keep = |piece: &PageRange| {
        let hash = (piece.start / GROUP + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        all <= GROUPS || (hash ^ (hash >> 32)) % all < GROUPS
    };
    (whole.into_iter().filter(keep).collect(), all)
}

/// Pages found written, by group, of those that are watched.
fn look(
    tracker: &dyn DirtyTracker,
    watched: &[PageRange],
) -> Result<HashMap<u64, u64>, TrackerError> {
    let mut found: HashMap<u64, u64> = watched.iter().map(|p| (p.start / GROUP, 0)).collect();
    tracker.harvest(&mut |run| {
        for piece in in_groups(run) {
            if let Some(pages) = found.get_mut(&(piece.start / GROUP)) {
                *pages += piece.count;
            }
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{HarvestStats, TrackerKind};

    /// Tells what a guest wrote, one harvest after another.
    #[derive(Debug)]
    struct Told {
        harvests: Vec<Vec<PageRange>>,
        at: AtomicUsize,
    }

    impl DirtyTracker for Told {
        fn kind(&self) -> TrackerKind {
            TrackerKind::KvmLog
        }
        fn start(&self) -> Result<(), TrackerError> {
            Ok(())
        }
        fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
            let at = self.at.fetch_add(1, Ordering::Relaxed);
            self.harvests[at].iter().for_each(|run| found(*run));
            Ok(HarvestStats::default())
        }
        fn protect(&self, _: PageRange) -> Result<(), TrackerError> {
            Ok(())
        }
        fn stop(&self) {}
    }

    fn taken(looks: [Vec<PageRange>; 2]) -> Sample {
        let [first, second] = looks;
        let all = vec![PageRange::new(3, 10 * GROUP)];
        let told = Told {
            harvests: vec![all, first, second],
            at: AtomicUsize::new(0),
        };
        Sample::take(&told).unwrap()
    }

    const GROUPS_2M: Cost = Cost {
        dense_ns: 300.0,
        sparse_ns: 60_000.0,
    };
    const LOG: Cost = Cost {
        dense_ns: 2_200.0,
        sparse_ns: 5_000.0,
    };

    fn prefers_groups(sample: &Sample) -> bool {
        sample.loss_ns(GROUPS_2M, true) < sample.loss_ns(LOG, false)
    }

    #[test]
    fn groups_pay_where_many_pages_of_each_are_written() {
        let run = PageRange::new;
        // Parts of groups at the ends are not watched.
        let none = taken([vec![run(3, 100)], vec![run(3, 100)]]);
        assert_eq!((none.watched, none.pages()), (9, 0));
        let sparse: Vec<PageRange> = (1..9).map(|g| run(g * GROUP + 7, 1)).collect();
        let sample = taken([sparse.clone(), sparse]);
        assert_eq!(sample.written, [(1, 1); 8]);
        assert!(!prefers_groups(&sample));
        let dense = taken([vec![run(GROUP, GROUP)], vec![run(GROUP, 2 * GROUP)]]);
        assert_eq!(dense.written, [(512, 512), (0, 512)]);
        assert!(prefers_groups(&dense));
    }

    #[test]
    fn what_grows_is_taken_to_go_on() {
        let run = PageRange::new;
        let still = taken([vec![run(GROUP, 9)], vec![run(GROUP, 9)]]);
        assert!(!prefers_groups(&still));
        let grows = taken([vec![run(GROUP, 4)], vec![run(GROUP, 14)]]);
        assert!(prefers_groups(&grows));
    }

    #[test]
    fn few_are_chosen_of_many_from_all_over() {
        let all: Vec<PageRange> = (0..4096)
            .map(|g| PageRange::new(g * GROUP, GROUP))
            .collect();
        let (chosen, of) = choose(all);
        assert_eq!(of, 4096);
        assert!((48..160).contains(&chosen.len()), "{}", chosen.len());
        for part in 0..4 {
            let within = |p: &&PageRange| p.start / GROUP / 1024 == part;
            let n = chosen.iter().filter(within).count();
            assert!((8..64).contains(&n), "{part}: {n}");
        }
        // Whatever a guest's stride: not all of the chosen, and not none.
        for stride in [2, 3, 4, 8, 16] {
            let on = |p: &&PageRange| (p.start / GROUP).is_multiple_of(stride);
            let n = chosen.iter().filter(on).count() as u64;
            let expected = chosen.len() as u64 / stride;
            assert!(n >= expected / 3 && n <= 3 * expected + 3, "{stride}: {n}");
        }
    }
}
