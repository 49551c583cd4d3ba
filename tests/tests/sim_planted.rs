//! Drivers that are wrong on purpose: if the checks did not find these, they would find nothing.

use std::time::Duration;

use vmferry_tests::sim::{
    Cut, CutKind, PlantedBug, Scenario, SimJob, Trigger, Violation, Writes, run,
};

/// What the checks say of some of many runs with this bug; and nothing without it.
fn found(bug: PlantedBug, base: &Scenario) -> Vec<Violation> {
    let mut violations = Vec::new();
    for seed in 0..10 {
        let mut scenario = Scenario {
            seed,
            ..base.clone()
        };
        assert!(run(&scenario).is_ok(), "{bug:?}: fails without the bug too");
        scenario.faults.bug = Some(bug);
        violations.extend(run(&scenario).err().map(|(violation, _)| violation));
    }
    violations
}

fn busy() -> Scenario {
    let mut scenario = Scenario {
        writes: Writes::Hot {
            pages: 300,
            rate: 80_000,
        },
        ..Scenario::default()
    };
    scenario.costs.read = Duration::from_micros(400);
    scenario
}

#[test]
fn a_driver_that_tells_before_it_stores_is_found() {
    let found = found(PlantedBug::TellsBeforeStored, &Scenario::default());
    assert!(found.contains(&Violation::TwoOwners), "{found:?}");
}

#[test]
fn a_driver_that_reads_before_it_protects_is_found() {
    let found = found(PlantedBug::ReadsBeforeProtecting, &busy());
    assert!(
        found
            .iter()
            .any(|v| matches!(v, Violation::LostPage { .. })),
        "{found:?}"
    );
}

#[test]
fn a_driver_that_forgets_what_it_harvested_is_found() {
    let found = found(PlantedBug::ForgetsFinalHarvest, &busy());
    assert!(
        found
            .iter()
            .any(|v| matches!(v, Violation::LostPage { .. })),
        "{found:?}"
    );
}

#[test]
fn a_driver_that_acknowledges_what_it_has_not_applied_is_found() {
    let found = found(PlantedBug::AcknowledgesUnapplied, &Scenario::default());
    assert!(
        found
            .iter()
            .all(|v| matches!(v, Violation::LostPage { .. })),
        "{found:?}"
    );
    assert_eq!(found.len(), 10);
}

#[test]
fn a_driver_that_resumes_when_it_is_only_prepared_is_found() {
    let found = found(PlantedBug::ResumesWhenPrepared, &Scenario::default());
    assert_eq!(found, vec![Violation::TwoOwners; 10]);
}

#[test]
fn a_driver_that_does_not_pause_is_found() {
    let found = found(PlantedBug::DoesNotPause, &busy());
    assert!(
        found
            .iter()
            .any(|v| matches!(v, Violation::LostPage { .. })),
        "{found:?}"
    );
}

#[test]
fn a_driver_that_resumes_by_itself_after_the_handover_is_found() {
    let steps = run(&Scenario::default()).expect("nothing goes wrong").steps;
    let found = (0..steps).any(|n| {
        let mut scenario = Scenario::default();
        let (at, kind) = (Trigger::Step(n), CutKind::Reset);
        scenario.faults.cut = Some(Cut {
            at,
            kind,
            refused: Some(1),
        });
        scenario.faults.bug = Some(PlantedBug::ResumesOnLoss);
        matches!(run(&scenario), Err((Violation::TwoOwners, _)))
    });
    assert!(found);
}

/// Slow writes, one of them beside another.
fn writes_disk() -> Scenario {
    let slow = Duration::from_secs(3);
    Scenario {
        jobs: vec![SimJob::write(1, slow), SimJob::write(1, slow)],
        ..Scenario::default()
    }
}

#[test]
fn a_destination_that_forgets_fences_or_lifts_them_unasked_is_found() {
    for bug in [PlantedBug::ForgetsFences, PlantedBug::SettlesAtOnce] {
        let found = found(bug, &writes_disk());
        let of_storage = |v: &&Violation| matches!(v, Violation::Storage(_));
        assert_eq!(found.iter().filter(of_storage).count(), 10, "{found:?}");
    }
}
