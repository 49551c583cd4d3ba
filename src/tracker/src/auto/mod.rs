//! `--tracker auto`: finds out what each tracker costs a guest on this host, and chooses.
//!
//! Two figures for each: what a page costs a guest that rewrites all pages of 2 MiB, and one that
//! rewrites a single page of it. They are measured on spare memory, in some 20 ms, once for a
//! process. Which of the two counts for the guest at hand, a short look at it says ([`Sample`]).
//! There, reading more than was written is reckoned too.

mod guest;
mod measure;
mod sample;

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

#[cfg(test)]
pub(crate) use guest::TryGuest;
pub use sample::Sample;

use crate::{DirtyTracker, TrackerKind};

/// Pages of a huge page.
const GROUP: u64 = 512;
/// Measuring that takes longer than this has got stuck, and is left behind.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a machine is, as far as its trackers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineSort {
    /// Native threads.
    Process,
    /// A KVM machine with a dirty log.
    Kvm,
    /// A KVM machine with dirty rings.
    KvmWithRings,
}

impl MachineSort {
    /// Trackers that it can have; the first is chosen where nothing else is known, and of equals.
    /// Those that split huge pages come last, as measuring them changes what the others find.
    const fn trackers(self) -> &'static [TrackerKind] {
        match self {
            Self::Process => &[TrackerKind::WpGroup, TrackerKind::WpAsync],
            Self::Kvm => &[
                TrackerKind::WpGroup,
                TrackerKind::KvmLog,
                TrackerKind::WpAsync,
            ],
            Self::KvmWithRings => &[
                TrackerKind::WpGroup,
                TrackerKind::KvmRing,
                TrackerKind::WpAsync,
            ],
        }
    }

    /// The tracker by which a guest is watched for a [`Sample`]: it tells of single pages, and
    /// costs nothing where nothing is watched. Dirty rings protect all RAM as soon as they begin.
    #[must_use]
    pub const fn watcher(self) -> Option<TrackerKind> {
        match self {
            Self::Process => Some(TrackerKind::WpAsync),
            Self::Kvm => Some(TrackerKind::KvmLog),
            Self::KvmWithRings => None,
        }
    }

    /// The tracker that needs least of the host.
    const fn modest(self) -> TrackerKind {
        match self {
            Self::Process => TrackerKind::WpAsync,
            Self::Kvm => TrackerKind::KvmLog,
            Self::KvmWithRings => TrackerKind::KvmRing,
        }
    }
}

/// What a guest loses for each page that it rewrites, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Where it rewrites all pages of 2 MiB.
    pub dense_ns: f64,
    /// Where it rewrites one page of 2 MiB.
    pub sparse_ns: f64,
}

impl Cost {
    /// What both guests lose in 2 MiB.
    fn weight(self) -> f64 {
        self.dense_ns * GROUP as f64 + self.sparse_ns
    }
}

/// What was found out of a tracker.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The tracker.
    pub kind: TrackerKind,
    /// What it costs, or why that is not known.
    pub cost: Result<Cost, String>,
}

/// A tracker chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub kind: TrackerKind,
    /// Why, in a line.
    pub why: String,
    /// What it was chosen by: every tracker that such a machine could have.
    pub measured: Vec<Measured>,
}

/// Pages to write: `count`, from `first`, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    pub(crate) first: u64,
    pub(crate) stride: u64,
    pub(crate) count: u64,
}

impl Sweep {
    fn pages(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |i| self.first + i * self.stride)
    }
}

/// The tracker for a machine of that sort. The first call for a sort measures, which takes some
/// 20 ms of the calling thread's time; later ones answer at once. Never fails: where nothing can
/// be measured it is the tracker that needs least.
#[must_use]
pub fn pick(sort: MachineSort) -> Choice {
    static KNOWN: [OnceLock<Vec<Measured>>; 3] = [const { OnceLock::new() }; 3];
    let measured = KNOWN[sort as usize].get_or_init(|| measure(sort)).clone();
    let (kind, why) = choose(sort, &measured);
    Choice {
        kind,
        why,
        measured,
    }
}

/// As [`pick`], for a guest that runs: `watcher` is its machine's own tracker of the kind that
/// [`MachineSort::watcher`] says, not used otherwise. Blocks for some 30 ms more; where the look
/// fails, the choice is that of [`pick`].
#[must_use]
pub fn pick_for(sort: MachineSort, watcher: &dyn DirtyTracker) -> Choice {
    let choice = pick(sort);
    let sample = match Sample::take(watcher) {
        Ok(sample) => sample,
        Err(error) => {
            tracing::debug!(%error, "how the guest writes could not be looked at");
            return choice;
        }
    };
    let chosen = choose_for(choice.kind, &choice.measured, &sample);
    match chosen {
        Some((kind, why)) => Choice {
            kind,
            why,
            ..choice
        },
        None => choice,
    }
}

/// Another tracker is chosen for a guest only where it costs less than this part of what the usual
/// one does: that one has more to offer than what is weighed here.
const WORTH: f64 = 0.5;
/// And where that matters, in nanoseconds of a pass over all RAM, and is no accident: that a few
/// pages were written here and there in what was watched says little of the rest.
const MATTERS_NS: f64 = 10e6;
const FEW_GROUPS: usize = 3;

/// The tracker that costs a guest least that writes as in `sample`, with the reason in a line;
/// `usual` unless another is much better. None where the guest wrote nothing there, or too little
/// is known.
#[must_use]
pub fn choose_for(
    usual: TrackerKind,
    measured: &[Measured],
    sample: &Sample,
) -> Option<(TrackerKind, String)> {
    let loss = |m: &Measured| Some((m.kind, loss_ns(m, sample)?));
    let losses: Vec<(TrackerKind, f64)> = measured.iter().filter_map(loss).collect();
    let of_usual = losses.iter().find(|(kind, _)| *kind == usual)?.1;
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    if sample.written.is_empty() {
        return None;
    }
    let saved = (of_usual - best.1) * sample.scale();
    let matters = saved >= MATTERS_NS && sample.written.len() >= FEW_GROUPS;
    let (kind, of_it) = match best.1 < of_usual * WORTH && matters {
        true => *best,
        false => (usual, of_usual),
    };
    let mut why = format!(
        "the guest wrote {} pages in {} of {} groups of 2 MiB that were watched; in those a pass \
         would cost it {} µs",
        sample.pages(),
        sample.written.len(),
        sample.watched,
        micros(of_it)
    );
    for (other, loss) in losses.iter().filter(|(other, _)| *other != kind) {
        let _ = write!(why, ", with {other} {}", micros(*loss));
    }
    why.push_str(&unknown(measured));
    Some((kind, why))
}

fn loss_ns(measured: &Measured, sample: &Sample) -> Option<f64> {
    let whole = measured.kind == TrackerKind::WpGroup;
    Some(sample.loss_ns(*measured.cost.as_ref().ok()?, whole))
}

/// Measures, on a thread of its own: whatever the kernel does to it, the caller goes on.
fn measure(sort: MachineSort) -> Vec<Measured> {
    let (done, result) = mpsc::sync_channel(1);
    let work = move || drop(done.send(measure::all(sort)));
    let thread = std::thread::Builder::new()
        .name("try-trackers".to_owned())
        .spawn(work);
    let why = match thread {
        Err(error) => format!("no thread to measure it: {error}"),
        Ok(thread) => match result.recv_timeout(PATIENCE) {
            Ok(measured) => {
                let _ = thread.join();
                return measured;
            }
            Err(_) => "measuring it did not end".to_owned(),
        },
    };
    let failed = |&kind| Measured {
        kind,
        cost: Err(why.clone()),
    };
    sort.trackers().iter().map(failed).collect()
}

/// The tracker that costs a guest least: one guest writes all pages of 2 MiB, another a single
/// one, and what they lose together counts. It is lost time that counts, so the one that loses
/// much weighs more than the one that loses little.
#[must_use]
pub fn choose(sort: MachineSort, measured: &[Measured]) -> (TrackerKind, String) {
    let known = measured
        .iter()
        .filter_map(|m| Some((m.kind, m.cost.as_ref().ok()?)));
    let best = known
        .clone()
        .min_by(|(_, a), (_, b)| a.weight().total_cmp(&b.weight()));
    let Some((kind, cost)) = best else {
        let why = format!("nothing could be measured{}", unknown(measured));
        return (sort.modest(), why);
    };
    let mut why = format!(
        "costs a guest that rewrites 2 MiB {} µs a page, one that rewrites a page of it {} µs",
        micros(cost.dense_ns),
        micros(cost.sparse_ns)
    );
    for (other, cost) in known.filter(|(other, _)| *other != kind) {
        let (dense, sparse) = (micros(cost.dense_ns), micros(cost.sparse_ns));
        // Writing to a String cannot fail.
        let _ = write!(why, "; {other} {dense} and {sparse}");
    }
    why.push_str(&unknown(measured));
    (kind, why)
}

fn unknown(measured: &[Measured]) -> String {
    let failed = measured
        .iter()
        .filter_map(|m| Some((m.kind, m.cost.as_ref().err()?)));
    failed
        .map(|(kind, why)| format!("; {kind} not: {why}"))
        .collect()
}

/// Two digits that matter.
fn micros(ns: f64) -> String {
    let us = ns / 1e3;
    let decimals = match us {
        10.0.. => 0,
        1.0.. => 1,
        _ => 2,
    };
    format!("{us:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(kind: TrackerKind, dense_ns: f64, sparse_ns: f64) -> Measured {
        Measured {
            kind,
            cost: Ok(Cost {
                dense_ns,
                sparse_ns,
            }),
        }
    }

    fn lacks(kind: TrackerKind, why: &str) -> Measured {
        Measured {
            kind,
            cost: Err(why.to_owned()),
        }
    }

    use TrackerKind::{KvmLog, KvmRing, WpAsync, WpGroup};

    #[test]
    fn what_a_guest_loses_in_all_decides() {
        let sort = MachineSort::Kvm;
        let chosen = |measured: &[Measured]| choose(sort, measured).0;
        // One notification more expensive than another tracker's, and 512 times fewer.
        let log = cost(KvmLog, 24_000.0, 24_000.0);
        assert_eq!(
            chosen(&[cost(WpGroup, 270.0, 140_000.0), log.clone()]),
            WpGroup
        );
        // Where groups bring nothing (no huge pages, a slow handler), they are not chosen.
        assert_eq!(
            chosen(&[cost(WpGroup, 26_000.0, 140_000.0), log.clone()]),
            KvmLog
        );
        assert_eq!(
            chosen(&[log.clone(), cost(WpAsync, 900.0, 2_000.0)]),
            WpAsync
        );
        // Of equals, the first.
        assert_eq!(chosen(&[log, cost(KvmRing, 24_000.0, 24_000.0)]), KvmLog);
    }

    #[test]
    fn the_reason_names_all_that_was_measured_and_what_is_missing_in_a_line() {
        let measured = [
            lacks(WpGroup, "no permission"),
            cost(KvmLog, 24_123.0, 9_870.0),
            cost(WpAsync, 30_000.0, 500.0),
        ];
        let (kind, why) = choose(MachineSort::Kvm, &measured);
        assert_eq!(kind, KvmLog);
        assert_eq!(
            why,
            "costs a guest that rewrites 2 MiB 24 µs a page, one that rewrites a page of it 9.9 \
             µs; wp-async 30 and 0.50; wp-group not: no permission"
        );
    }

    #[test]
    fn a_guest_that_writes_single_pages_gets_a_tracker_of_single_pages() {
        let measured = [
            cost(WpGroup, 270.0, 140_000.0),
            cost(KvmLog, 24_000.0, 24_000.0),
        ];
        let sample = |written: &[(u64, u64)]| Sample {
            watched: 96,
            of: 960,
            written: written.to_vec(),
        };
        let chosen = |written: &[(u64, u64)]| choose_for(WpGroup, &measured, &sample(written));
        let (kind, why) = chosen(&[(1, 1), (1, 1), (1, 1)]).unwrap();
        assert_eq!(kind, KvmLog);
        assert_eq!(
            why,
            "the guest wrote 3 pages in 3 of 96 groups of 2 MiB that were watched; in those a \
             pass would cost it 72 µs, with wp-group 1186"
        );
        // A page here and there may be all there is of that sort.
        assert_eq!(chosen(&[(1, 1), (1, 1)]).unwrap().0, WpGroup);
        // Nor does it matter where it is little.
        let little = Sample {
            of: 96,
            ..sample(&[(1, 1); 3])
        };
        assert_eq!(choose_for(WpGroup, &measured, &little).unwrap().0, WpGroup);
        // Not much better is not enough.
        assert_eq!(chosen(&[(9, 9)]).unwrap().0, WpGroup);
        assert_eq!(chosen(&[(100, 300)]).unwrap().0, WpGroup);
        assert_eq!(chosen(&[]), None);
        let unknown = [lacks(WpGroup, "no permission")];
        assert_eq!(choose_for(WpGroup, &unknown, &sample(&[(1, 1)])), None);
    }

    #[test]
    fn where_nothing_could_be_measured_the_most_modest_is_chosen() {
        for (sort, modest) in [
            (MachineSort::Process, WpAsync),
            (MachineSort::Kvm, KvmLog),
            (MachineSort::KvmWithRings, KvmRing),
        ] {
            let (kind, why) = choose(sort, &[lacks(WpGroup, "it is broken")]);
            assert_eq!(kind, modest);
            assert_eq!(why, "nothing could be measured; wp-group not: it is broken");
            assert!(sort.trackers().contains(&modest));
        }
    }

    fn measures(sort: MachineSort) {
        let first = pick(sort);
        println!("{sort:?}: {} {}", first.kind, first.why);
        assert_eq!(first.measured.len(), sort.trackers().len());
        for Measured { kind, cost } in &first.measured {
            match cost {
                Ok(cost) => assert!(cost.dense_ns > 0.0 && cost.sparse_ns > 0.0, "{kind}"),
                Err(why) => println!("SKIPPED ({why}): {kind}"),
            }
        }
        // Figures measured twice would differ.
        assert_eq!(pick(sort), first);
    }

    #[test]
    fn measuring_works_for_native_threads_and_is_done_once() {
        measures(MachineSort::Process);
    }

    #[test]
    fn kvm_measuring_works_for_a_guest_and_is_done_once() {
        measures(MachineSort::Kvm);
        measures(MachineSort::KvmWithRings);
    }
}
