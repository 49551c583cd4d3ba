//! Migrations in which nothing, or one ordinary thing, goes wrong.

use std::time::Duration;

use vmferry_protocol::destination::DestinationOutcome;
use vmferry_protocol::message::{AbortCode, RunState};
use vmferry_protocol::source::Outcome;
use vmferry_tests::sim::{Link, Report, Scenario, Writes, run};

fn ok(scenario: &Scenario) -> Report {
    run(scenario).unwrap_or_else(|(violation, trace)| panic!("{violation}\n{trace}"))
}

fn completed(report: &Report) -> bool {
    report.source == Some(Outcome::Completed)
        && report.destination == Some(DestinationOutcome::Completed)
        && report.active == [false, true]
}

#[test]
fn a_guest_arrives_whole_whatever_it_writes() {
    let hot = |pages, rate| Writes::Hot { pages, rate };
    let all = [
        Writes::Idle,
        Writes::Uniform { rate: 1000 },
        Writes::Uniform { rate: 60_000 },
        hot(16, 200_000),
        hot(500, 100_000),
    ];
    for writes in all {
        for seed in 0..8 {
            let report = ok(&Scenario {
                writes,
                seed,
                ..Scenario::default()
            });
            assert!(completed(&report), "{writes:?} {report:?}");
        }
    }
}

#[test]
fn groups_bring_neighbours_along_and_only_what_changed_travels() {
    for group_pages in [2, 16, 512] {
        for seed in 0..8 {
            let scenario = Scenario {
                group_pages,
                seed,
                writes: Writes::Uniform { rate: 3000 },
                ..Scenario::default()
            };
            let grouped = ok(&scenario);
            assert!(completed(&grouped), "{group_pages} {seed} {grouped:?}");
            assert!(grouped.pages_unchanged > 0, "{group_pages} {seed}");
            let exact = ok(&Scenario {
                group_pages: 1,
                ..scenario
            });
            let (sent, most) = (grouped.pages_sent, exact.pages_sent);
            assert!(sent * 100 <= most * 120, "{group_pages}: {sent}, {most}");
        }
    }
}

#[test]
fn a_paused_guest_stays_paused() {
    let scenario = Scenario {
        run_state: RunState::Paused,
        ..Scenario::default()
    };
    assert!(completed(&ok(&scenario)));
}

#[test]
fn a_guest_that_touched_nothing_sends_nearly_nothing() {
    let scenario = Scenario {
        touched: 0,
        writes: Writes::Idle,
        ..Scenario::default()
    };
    let report = ok(&scenario);
    assert!(completed(&report));
    assert_eq!(
        report.pages_sent, 1,
        "the page that saving the state has written"
    );
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_given_up_and_runs_on() {
    let scenario = Scenario {
        writes: Writes::Uniform { rate: 200_000 },
        link: Link {
            latency: Duration::from_millis(1),
            bandwidth: 10_000_000,
        },
        ..Scenario::default()
    };
    let report = ok(&scenario);
    let Some(Outcome::Aborted { code, detail }) = &report.source else {
        panic!("{report:?}");
    };
    assert_eq!(*code, AbortCode::NotConverging);
    assert!(detail.contains("MiB/s"), "{detail}");
    assert_eq!(report.active, [true, false]);
    assert!(matches!(
        report.destination,
        Some(DestinationOutcome::Aborted { .. })
    ));
}

#[test]
fn the_parts_of_the_blackout_are_the_blackout() {
    for seed in 0..20 {
        let report = ok(&Scenario {
            seed,
            ..Scenario::default()
        });
        let stats = report.stats.expect("the source lives");
        let parts: Duration = stats.blackout().expect("completed").iter().sum();
        let real = report.blackout.expect("it was paused");
        let error = parts.abs_diff(real);
        assert!(
            error < Duration::from_micros(50),
            "{parts:?} said, {real:?} was"
        );
    }
}

#[test]
fn the_policy_keeps_the_blackout_it_promises() {
    let max_blackout = Duration::from_millis(40);
    for seed in 0..10 {
        let mut scenario = Scenario {
            seed,
            ..Scenario::default()
        };
        scenario.limits.max_blackout = max_blackout;
        scenario.writes = Writes::Hot {
            pages: 200,
            rate: 50_000,
        };
        scenario.link.bandwidth = 100_000_000;
        let report = ok(&scenario);
        assert!(completed(&report));
        assert!(
            report.blackout.expect("paused") <= max_blackout,
            "{:?}",
            report.blackout
        );
    }
}

#[test]
fn a_run_is_the_same_every_time() {
    let scenario = Scenario::default();
    let (a, b) = (ok(&scenario), ok(&scenario));
    assert_eq!((a.steps, a.took, a.messages), (b.steps, b.took, b.messages));
}
