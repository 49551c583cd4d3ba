//! `kill -9` of the source, of the destination, or of the connection between them, at every point
//! of the switchover: the disk holds what was acknowledged, and the guest has one owner.
//!
//! `VMFERRY_CRASH_SEEDS=20` runs as many seeds of each; `VMFERRY_CRASH_ONLY=POINT/VICTIM/SEED`
//! repeats one run.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmferry_machine::MachineKind;
use vmferry_tests::crash::{Case, Keys, Point, Seen, Victim, run};
use vmferry_tests::engine::has_kvm;

/// Runs at a time.
const AT_ONCE: usize = 4;
/// Seeds by default: what fits in two minutes on two cores.
const SEEDS: u64 = 1;
/// Failures that are told at length.
const TOLD: usize = 5;

fn seeds() -> u64 {
    let asked = std::env::var("VMFERRY_CRASH_SEEDS");
    asked.map_or(SEEDS, |n| n.parse().expect("VMFERRY_CRASH_SEEDS: a number"))
}

/// The one run that is to be repeated.
fn only() -> Option<(Point, Victim, u64)> {
    let asked = std::env::var("VMFERRY_CRASH_ONLY").ok()?;
    let parts: Vec<&str> = asked.split('/').collect();
    let [point, victim, seed] = parts[..] else {
        panic!("VMFERRY_CRASH_ONLY: POINT/VICTIM/SEED, not '{asked}'");
    };
    let seed = seed
        .parse()
        .expect("VMFERRY_CRASH_ONLY: a seed is a number");
    Some((point.parse().unwrap(), victim.parse().unwrap(), seed))
}

fn cases(kind: MachineKind, points: &[Point], seeds: u64) -> Vec<Case> {
    let case = |(point, victim, seed)| Case {
        point,
        victim,
        seed,
        kind,
    };
    if let Some(only) = only() {
        return vec![case(only)];
    }
    let mut cases = Vec::new();
    for seed in 0..seeds {
        for &point in points {
            cases.extend(Victim::ALL.map(|victim| case((point, victim, seed))));
        }
    }
    cases
}

/// Runs them all, and fails where one has failed or a point was never reached.
fn all(cases: &[Case]) {
    let program = Path::new(env!("CARGO_BIN_EXE_faulty-vm"));
    let keys = Keys::new().unwrap();
    let (next, ran) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seen = run(program, &keys, case);
                    ran.lock().unwrap().push((*case, seen));
                }
            });
        }
    });
    let ran = ran.into_inner().unwrap();
    report(&ran);
}

fn report(ran: &[(Case, Result<Seen, String>)]) {
    let (mut reached, mut ends) = (BTreeMap::new(), BTreeMap::new());
    let (mut writes, mut reissued, mut open) = (0, 0, 0);
    let mut failed = Vec::new();
    for (case, seen) in ran {
        let hits = reached
            .entry(case.point as usize)
            .or_insert((case.point, 0, 0));
        hits.2 += 1;
        match seen {
            Ok(seen) => {
                hits.1 += u32::from(seen.reached);
                *ends
                    .entry((format!("{:?}", case.victim), seen.end))
                    .or_insert(0) += 1;
                writes += seen.tally.writes;
                reissued += seen.tally.reissued;
                open += seen.tally.open;
            }
            Err(why) => failed.push((case, why)),
        }
    }
    println!(
        "{} runs; {writes} writes, {reissued} issued twice, {open} cut off",
        ran.len()
    );
    println!("ends: {ends:?}");
    for (point, hits, runs) in reached.values() {
        println!("  {point:?}: {hits} of {runs}");
    }
    for (case, why) in failed.iter().take(TOLD) {
        let Case {
            point,
            victim,
            seed,
            kind,
        } = case;
        println!("FAILED: VMFERRY_CRASH_ONLY={point:?}/{victim:?}/{seed} ({kind:?}): {why}");
    }
    let which: Vec<String> = failed
        .iter()
        .map(|(c, _)| format!("{:?}/{:?}/{}", c.point, c.victim, c.seed))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} failed: {which:?}",
        failed.len(),
        ran.len()
    );
    let missed = reached.values().filter(|r| r.1 == 0 && only().is_none());
    let missed: Vec<Point> = missed.map(|r| r.0).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

#[test]
fn no_write_is_lost_and_nobody_is_two() {
    all(&cases(MachineKind::Process, Point::ALL, seeds()));
}

#[test]
fn kvm_no_write_is_lost_and_nobody_is_two() {
    let points = [
        Point::SaveAfter,
        Point::PreparedAfter,
        Point::RelinquishAfter,
        Point::OwnerAfter,
        Point::ResumeAfter,
        Point::LateEnd,
        Point::SettledBefore,
    ];
    if has_kvm() {
        all(&cases(MachineKind::Kvm, &points, 1));
    }
}
