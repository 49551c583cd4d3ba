//! One thing goes wrong, at every moment at which it can.

use std::time::Duration;

use vmferry_block::{Extent, JobKind};
use vmferry_protocol::destination::DestinationOutcome;
use vmferry_protocol::message::{AbortCode, RunState};
use vmferry_protocol::source::Outcome;
use vmferry_tests::sim::{
    Cut, CutKind, Direction, DiskFault, Report, Scenario, Side, SimJob, Trigger, Writes, run,
};

/// Quick and slow ones, of which two touch the same blocks.
fn jobs() -> Vec<SimJob> {
    let ms = Duration::from_millis;
    let cancels = true;
    vec![
        SimJob::write(1, ms(1)),
        SimJob::write(2, ms(90)),
        SimJob {
            extent: Extent::new(2 * 4096, 3 * 4096),
            ..SimJob::write(2, ms(30))
        },
        SimJob {
            kind: JobKind::Read,
            ..SimJob::write(2, ms(200))
        },
        SimJob {
            cancels,
            ..SimJob::write(5, ms(5))
        },
        SimJob {
            kind: JobKind::Flush,
            extent: Extent::default(),
            ..SimJob::write(0, ms(4))
        },
    ]
}

/// Few pages, so that a run has some hundred steps and each can be tried.
fn small() -> Scenario {
    Scenario {
        touched: 300,
        writes: Writes::Uniform { rate: 10_000 },
        jobs: jobs(),
        ..Scenario::default()
    }
}

fn ok(scenario: &Scenario) -> Report {
    run(scenario)
        .unwrap_or_else(|(violation, trace)| panic!("{violation}\n{:?}\n{trace}", scenario.faults))
}

/// Both sides have ended, and agree: it is here as before, or it is there.
fn agreed(report: &Report) -> bool {
    match (&report.source, &report.destination) {
        (Some(Outcome::Completed), Some(DestinationOutcome::Completed)) => {
            report.active == [false, true]
        }
        (Some(Outcome::Aborted { .. }), Some(DestinationOutcome::Aborted { .. })) => {
            report.active == [true, false]
        }
        _ => false,
    }
}

fn cuts(kind: CutKind, refused: Option<u32>, mut check: impl FnMut(&Cut, &Report)) {
    let whole = ok(&small());
    let messages = [Direction::ToDestination, Direction::ToSource]
        .into_iter()
        .zip(&whole.messages)
        .flat_map(|(d, sent)| (0..sent.len() as u64).map(move |n| Trigger::Message(d, n)));
    let steps = (0..whole.steps).map(Trigger::Step);
    for at in messages.chain(steps) {
        let mut scenario = small();
        let cut = Cut { at, kind, refused };
        scenario.faults.cut = Some(cut);
        check(&cut, &ok(&scenario));
    }
}

#[test]
fn a_cut_at_any_moment_ends_well_when_the_hosts_can_connect_again() {
    let (mut completed, mut aborted) = (0, 0);
    for kind in [CutKind::Reset, CutKind::BlackHole] {
        for refused in [0, 3] {
            cuts(kind, Some(refused), |cut, report| {
                assert!(agreed(report), "{cut:?} {report:?}");
                completed += u32::from(report.active == [false, true]);
                aborted += u32::from(report.active == [true, false]);
            });
        }
    }
    assert!(completed > 20 && aborted > 100, "{completed} {aborted}");
}

#[test]
fn a_cut_for_ever_leaves_the_guest_in_one_place_or_to_the_operator() {
    for kind in [CutKind::Reset, CutKind::BlackHole] {
        cuts(kind, None, |cut, report| match &report.source {
            Some(Outcome::Undecided { detail }) => {
                assert!(!report.active[0], "{cut:?}");
                assert!(detail.contains("destination"), "{detail}");
            }
            Some(Outcome::Aborted { .. }) => assert_eq!(report.active, [true, false], "{cut:?}"),
            other => assert_eq!(
                (other, report.active),
                (&Some(Outcome::Completed), [false, true])
            ),
        });
    }
}

#[test]
fn a_side_killed_at_any_moment_leaves_at_most_one_owner() {
    for run_state in [RunState::Running, RunState::Paused] {
        let base = Scenario {
            run_state,
            ..small()
        };
        for side in [Side::Source, Side::Destination] {
            for n in 0..ok(&base).steps {
                let mut scenario = base.clone();
                scenario.faults.kill = Some((side, n));
                let report = ok(&scenario);
                if side == Side::Destination {
                    assert!(
                        report.source.is_some(),
                        "step {n}: the source waits for ever"
                    );
                    let completed = report.source == Some(Outcome::Completed);
                    let undecided = matches!(report.source, Some(Outcome::Undecided { .. }));
                    assert_eq!(report.active[0], !completed && !undecided, "step {n}");
                }
            }
        }
    }
}

#[test]
fn a_cancel_at_any_moment_leaves_the_guest_here_or_comes_too_late() {
    for side in [Side::Source, Side::Destination] {
        let (mut cancelled, mut late) = (0, 0);
        for n in 0..ok(&small()).steps {
            let mut scenario = small();
            scenario.faults.cancel = Some((side, n));
            let report = ok(&scenario);
            if n > 2 {
                // Before that there is no connection to say it on.
                assert!(agreed(&report), "{side:?} {n} {report:?}");
            }
            match &report.source {
                Some(Outcome::Aborted { code, .. }) => {
                    if n > 2 {
                        assert_eq!(*code, AbortCode::Cancelled);
                    }
                    cancelled += 1;
                }
                _ => late += 1,
            }
        }
        assert!(cancelled > 20 && late > 0, "{side:?} {cancelled} {late}");
    }
}

#[test]
fn a_migration_right_after_an_abort_succeeds() {
    for n in 0..ok(&small()).steps {
        let mut scenario = small();
        scenario.faults.cancel = Some((Side::Source, n));
        scenario.again = true;
        let report = ok(&scenario);
        assert!(agreed(&report), "{n} {report:?}");
        assert_eq!(report.active, [false, true], "{n}");
    }
}

#[test]
fn a_record_that_cannot_be_stored_ends_well() {
    for side in [Side::Source, Side::Destination] {
        for n in 0..2 {
            for fault in [DiskFault::Fails, DiskFault::FailsAfterWriting] {
                let mut scenario = small();
                scenario.faults.disk = Some((side, n, fault));
                let report = ok(&scenario);
                assert!(agreed(&report), "{side:?} {n} {fault:?} {report:?}");
                // The first record of a side is from before the handover.
                assert_eq!(report.active[0], n == 0, "{side:?} {n} {fault:?}");
            }
        }
    }
}

#[test]
fn a_machine_that_fails_before_the_handover_leaves_the_guest_at_the_source() {
    for side in [Side::Source, Side::Destination] {
        let steps = if side == Side::Source { 3 } else { 2 };
        for n in 0..steps {
            let mut scenario = small();
            scenario.faults.machine = Some((side, n));
            let report = ok(&scenario);
            assert!(agreed(&report), "{side:?} {n} {report:?}");
            assert_eq!(report.active, [true, false], "{side:?} {n}");
        }
    }
}

#[test]
fn a_message_that_comes_twice_breaks_no_promise() {
    let whole = ok(&small());
    for (direction, sent) in [Direction::ToDestination, Direction::ToSource]
        .into_iter()
        .zip(&whole.messages)
    {
        for (n, name) in sent.iter().enumerate() {
            let mut scenario = small();
            scenario.faults.duplicate = Some((direction, n as u64));
            let report = ok(&scenario);
            assert!(agreed(&report), "{name} twice: {report:?}");
            if ["Commit", "Resumed", "Bye", "Ping", "Pong", "PassBegin"].contains(name) {
                assert_eq!(report.active, [false, true], "{name}");
            }
        }
    }
}

#[test]
fn a_paused_switchover_is_given_up_at_its_deadline() {
    let mut scenario = small();
    scenario.costs.state = Duration::from_secs(60);
    let report = ok(&scenario);
    assert!(agreed(&report));
    assert_eq!(report.active, [true, false]);
    let blackout = report.blackout.expect("it was paused");
    assert!(blackout <= scenario.pause_deadline + Duration::from_millis(1));
}
