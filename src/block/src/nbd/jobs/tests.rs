use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use vmferry_memory::GuestRam;

use super::*;
use crate::Buffers;

const SIZE: u64 = 1 << 20;

fn jobs() -> Jobs {
    Jobs::new(Geometry {
        bytes: SIZE,
        block_size: 4096,
        read_only: false,
        flush: true,
        discard: true,
        write_zeroes: true,
        max_transfer: 4096,
    })
}

fn discard(jobs: &mut Jobs, id: u64) {
    submit(jobs, id, JobKind::Discard, Extent::new(id * 4096, 4096));
}

fn submit(jobs: &mut Jobs, id: u64, kind: JobKind, extent: Extent) {
    jobs.submit(Operation {
        id: JobId(id),
        kind,
        extent,
        buffers: Buffers::none(),
    });
}

fn ends(jobs: &mut Jobs) -> Vec<(u64, JobEnd)> {
    jobs.ended().drain(..).map(|c| (c.id.0, c.end)).collect()
}

#[test]
fn what_was_not_sent_is_cancelled_and_what_was_is_not() {
    let mut jobs = jobs();
    (0..3).for_each(|id| discard(&mut jobs, id));
    let sent = jobs.next(4096).unwrap();
    let back = jobs.next(4096).unwrap();
    jobs.unsend(back);
    (0..3).for_each(|id| jobs.cancel(JobId(id)));
    assert_eq!(
        ends(&mut jobs),
        [(1, JobEnd::Cancelled), (2, JobEnd::Cancelled)]
    );
    jobs.done(sent, None);
    assert_eq!(ends(&mut jobs), [(0, JobEnd::Done)]);
    assert!(!jobs.is_waiting());
}

#[test]
fn what_was_lost_comes_first_and_in_order() {
    let mut jobs = jobs();
    (0..4).for_each(|id| discard(&mut jobs, id));
    let lost = [jobs.next(1).unwrap(), jobs.next(1).unwrap()];
    jobs.lost(lost.into_iter());
    // A server has seen it.
    jobs.cancel(JobId(0));
    let order: Vec<u64> = std::iter::from_fn(|| jobs.next(1).map(|p| p.job.0)).collect();
    assert_eq!(order, [0, 1, 2, 3]);
    assert_eq!(ends(&mut jobs), []);
}

#[test]
fn what_is_lost_while_held_is_unknown_or_asked_again_when_let_go() {
    let mut jobs = jobs();
    let large = Extent::new(0, SIZE);
    submit(&mut jobs, 0, JobKind::WriteZeroes { unmap: true }, large);
    discard(&mut jobs, 1);
    let (zero, one) = (jobs.next(1).unwrap(), jobs.next(1).unwrap());
    jobs.hold(true, 1);
    jobs.lost(std::iter::once(zero));
    assert_eq!(ends(&mut jobs), [(0, JobEnd::Unknown)]);
    jobs.hold(false, 1);
    jobs.lost(std::iter::once(one));
    assert_eq!(ends(&mut jobs), []);
    jobs.hold(true, 1);
    assert_eq!(ends(&mut jobs), [], "another session may have it");
    jobs.strand(0);
    assert_eq!(ends(&mut jobs), [(1, JobEnd::Unknown)]);
    assert!(!jobs.is_waiting());
}

#[test]
fn when_closed_only_what_is_out_stays() {
    let mut jobs = jobs();
    (0..3).for_each(|id| discard(&mut jobs, id));
    let (zero, one) = (jobs.next(1).unwrap(), jobs.next(1).unwrap());
    jobs.close();
    jobs.lost(std::iter::once(zero));
    jobs.done(one, None);
    assert!(!jobs.is_waiting() && jobs.jobs.is_empty());
}

#[test]
fn reads_are_widened_to_blocks() {
    let mut jobs = jobs();
    let extent = Extent::new(4096 + 512, 4096);
    let ram = Arc::new(GuestRam::new(2 << 20).unwrap());
    let buffers = Buffers::new(&ram, [(100, 4096)]).unwrap();
    jobs.submit(Operation {
        id: JobId(7),
        kind: JobKind::Read,
        extent,
        buffers: buffers.clone(),
    });
    let (first, second) = (jobs.next(4096).unwrap(), jobs.next(4096).unwrap());
    assert_eq!(first.extent, Extent::new(4096, 4096));
    assert_eq!(second.extent, Extent::new(8192, 4096));
    jobs.copy_in(JobId(7), 8192, &[2; 4096]);
    jobs.copy_in(JobId(7), 4096, &[1; 100]);
    jobs.copy_in(JobId(7), 4196, &[1; 3996]);
    let mut found = [0; 4096];
    buffers.copy_out(0, &mut found);
    assert!(found[..3584] == [1; 3584] && found[3584..] == [2; 512]);
}

#[derive(Clone, Debug)]
enum Step {
    Submit(bool, u64),
    Cancel(u8),
    Hold(bool),
    Next,
    Unsend(u8),
    Done(u8, bool),
    Lost(u8),
    AllLost,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<bool>(), 1..4u64).prop_map(|(flush, blocks)| Step::Submit(flush, blocks)),
        2 => any::<u8>().prop_map(Step::Cancel),
        1 => any::<bool>().prop_map(Step::Hold),
        4 => Just(Step::Next),
        1 => any::<u8>().prop_map(Step::Unsend),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(at, fails)| Step::Done(at, fails)),
        2 => any::<u8>().prop_map(Step::Lost),
        1 => Just(Step::AllLost),
    ]
}

proptest! {
    /// Each ends once; as cancelled only if no server may still do it or has done it; as unknown
    /// only while held; as done only after all of it was answered.
    #[test]
    fn everything_ends_once_and_truly(steps in prop::collection::vec(step(), 0..80)) {
        let mut jobs = jobs();
        let mut out: Vec<Piece> = Vec::new();
        // What a server may have seen; what has ended; and what changes the disk.
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut ended: BTreeMap<u64, JobEnd> = BTreeMap::new();
        let mut writes = BTreeSet::new();
        let (mut count, mut held) = (0, false);
        let ram = Arc::new(GuestRam::new(2 << 20).unwrap());
        // At the end everything is let go and answered.
        let finish = std::iter::once(Step::Hold(false))
            .chain((0..400).flat_map(|_| [Step::Next, Step::Done(0, false)]));
        for step in steps.into_iter().chain(finish) {
            let take = |out: &mut Vec<Piece>, at: u8| {
                (!out.is_empty()).then(|| out.swap_remove(at as usize % out.len()))
            };
            match step {
                Step::Submit(true, _) => {
                    submit(&mut jobs, count, JobKind::Flush, Extent::default());
                    count += 1;
                }
                Step::Submit(false, blocks) => {
                    let extent = Extent::new(0, blocks * 4096);
                    writes.insert(count);
                    jobs.submit(Operation {
                        id: JobId(count),
                        kind: JobKind::Write,
                        extent,
                        buffers: Buffers::new(&ram, [(0, extent.len as u32)]).unwrap(),
                    });
                    count += 1;
                }
                Step::Cancel(at) => jobs.cancel(JobId(at as u64 % (count + 1))),
                Step::Hold(now) => {
                    held = now;
                    jobs.hold(now, 1);
                }
                Step::Next => out.extend(jobs.next(4096)),
                Step::Unsend(at) => {
                    if let Some(piece) = take(&mut out, at) {
                        jobs.unsend(piece);
                    }
                }
                Step::Done(at, fails) => {
                    if let Some(piece) = take(&mut out, at) {
                        seen.insert(piece.job.0);
                        jobs.done(piece, fails.then_some(libc::EIO));
                    }
                }
                Step::Lost(at) => {
                    if let Some(piece) = take(&mut out, at) {
                        seen.insert(piece.job.0);
                        jobs.lost(std::iter::once(piece));
                    }
                }
                Step::AllLost => {
                    seen.extend(out.iter().map(|piece| piece.job.0));
                    jobs.lost(std::mem::take(&mut out).into_iter());
                    jobs.strand(0);
                }
            }
            for (id, end) in ends(&mut jobs) {
                prop_assert_eq!(ended.insert(id, end), None);
                prop_assert!(out.iter().all(|piece| piece.job.0 != id), "{} is out", id);
                match end {
                    JobEnd::Unknown => prop_assert!(held),
                    JobEnd::Cancelled => {
                        prop_assert!(!seen.contains(&id) || !writes.contains(&id));
                    }
                    JobEnd::Done | JobEnd::Failed(_) => prop_assert!(seen.contains(&id)),
                }
            }
        }
        prop_assert_eq!(ended.len() as u64, count);
        prop_assert!(jobs.jobs.is_empty() && !jobs.is_waiting() && jobs.kept.is_empty());
    }
}
