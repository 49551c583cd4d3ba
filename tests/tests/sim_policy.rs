//! The convergence policy in whole migrations: what it costs the guest, and where it ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use vmferry_protocol::message::AbortCode;
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::Outcome;
use vmferry_protocol::{PageRange, RamLayout};
use vmferry_tests::recording::Recording;
use vmferry_tests::sim::{Costs, Link, Report, Scenario, Writes, run};

fn ok(scenario: &Scenario) -> Report {
    run(scenario).unwrap_or_else(|(violation, trace)| panic!("{violation}\n{trace}"))
}

fn passes(report: &Report) -> u32 {
    report.stats.as_ref().unwrap().passes.len() as u32
}

fn decisions(report: &Report) -> Vec<&'static str> {
    let stats = report.stats.as_ref().unwrap();
    stats
        .decisions
        .iter()
        .map(|(_, w)| w.decision.name())
        .collect()
}

/// A guest that rewrites `pages` as fast as it can, on a link that needs 80 ms for all of it.
fn fast_writer(pages: u64) -> Scenario {
    Scenario {
        writes: Writes::Hot {
            pages,
            rate: 400_000,
        },
        link: Link {
            latency: Duration::from_micros(100),
            bandwidth: 60_000_000,
        },
        ..Scenario::default()
    }
}

#[test]
fn passes_over_a_set_that_always_changes_are_not_made() {
    let report = ok(&fast_writer(600));
    assert_eq!(report.source, Some(Outcome::Completed));
    // One to send it all, one to learn that it comes back, the last in the pause.
    assert!(passes(&report) <= 4, "{:?}", decisions(&report));
    assert_eq!(decisions(&report).last(), Some(&"switch-over"));
}

#[test]
fn a_pass_that_costs_the_guest_more_than_it_saves_is_not_made() {
    let cheap = Scenario {
        writes: Writes::Uniform { rate: 3000 },
        ..fast_writer(0)
    };
    let dear = Scenario {
        notification: Duration::from_millis(2),
        ..cheap.clone()
    };
    let (cheap, dear) = (ok(&cheap), ok(&dear));
    assert!(
        passes(&dear) < passes(&cheap),
        "{} {}",
        passes(&dear),
        passes(&cheap)
    );
}

#[test]
fn a_guest_that_never_calms_down_is_given_up_or_slowed_down_as_allowed() {
    let tight = Limits {
        max_blackout: Duration::from_millis(12),
        ..Limits::default()
    };
    let hopeless = Scenario {
        limits: tight,
        ..fast_writer(600)
    };
    let report = ok(&hopeless);
    let Some(Outcome::Aborted { code, detail }) = &report.source else {
        panic!("{:?}", report.source);
    };
    assert_eq!(*code, AbortCode::NotConverging);
    assert!(detail.contains("--throttle"), "{detail}");

    let slowed = ok(&Scenario {
        limits: Limits {
            throttle_pct: 99,
            ..tight
        },
        ..hopeless.clone()
    });
    assert_eq!(slowed.source, Some(Outcome::Completed));
    assert!(decisions(&slowed).contains(&"throttle"));
    assert!(
        slowed.blackout.unwrap() < Duration::from_millis(15),
        "{:?}",
        slowed.blackout
    );

    let cannot = ok(&Scenario {
        can_throttle: false,
        limits: Limits {
            throttle_pct: 99,
            ..tight
        },
        ..hopeless
    });
    assert!(matches!(cannot.source, Some(Outcome::Aborted { .. })));
}

#[test]
fn hot_pages_are_left_for_the_end_while_the_rest_still_shrinks() {
    // Much cold memory that changes a little, and a hot set that fits the blackout.
    let scenario = Scenario {
        touched: 2000,
        notification: Duration::from_micros(1),
        writes: Writes::Hot {
            pages: 100,
            rate: 300_000,
        },
        ..fast_writer(100)
    };
    let report = ok(&scenario);
    assert_eq!(report.source, Some(Outcome::Completed));
    let stats = report.stats.as_ref().unwrap();
    let deferred: u64 = stats.passes.iter().map(|p| p.pages_deferred).sum();
    assert!(deferred > 0, "{:?}", decisions(&report));
}

#[test]
fn groups_that_are_hot_are_left_for_the_end_as_a_whole() {
    // The hot set is the first half of a group. Elsewhere a page is written each millisecond.
    let interval = |n: u64| vec![PageRange::new(0, 64), PageRange::new(128 + n * 10, 10)];
    let recording = Box::leak(Box::new(Recording {
        pages: 2000,
        every_ms: 10,
        intervals: (0..187).map(interval).collect(),
    }));
    let scenario = Scenario {
        layout: RamLayout::try_from(vec![PageRange::new(0, 2000)]).unwrap(),
        touched: 2000,
        notification: Duration::from_micros(1),
        writes: Writes::Recorded(recording),
        group_pages: 128,
        link: Link {
            latency: Duration::from_micros(100),
            bandwidth: 6_000_000,
        },
        limits: Limits {
            max_blackout: Duration::from_secs(30),
            ..Limits::default()
        },
        ..Scenario::default()
    };
    let report = ok(&scenario);
    assert_eq!(report.source, Some(Outcome::Completed));
    let stats = report.stats.as_ref().unwrap();
    let deferring = stats.passes.iter().find(|p| p.pages_hot > 0);
    let deferring = deferring.unwrap_or_else(|| panic!("{:?}", stats.decisions));
    // Whole groups, with pages that are not hot.
    let (hot, deferred) = (deferring.pages_hot, deferring.pages_deferred);
    assert!(
        hot >= 64 && deferred > hot && deferred % 128 == 0,
        "{hot} {deferred}"
    );
}

#[test]
fn slow_links_of_every_sort_end_with_the_guest_at_one_side() {
    for bandwidth in [5_000_000, 50_000_000, 500_000_000] {
        for throttle_pct in [0, 50, 99] {
            for group_pages in [1, 64] {
                for seed in 0..4 {
                    let scenario = Scenario {
                        link: Link {
                            latency: Duration::from_millis(1),
                            bandwidth,
                        },
                        group_pages,
                        seed,
                        limits: Limits {
                            max_blackout: Duration::from_millis(40),
                            throttle_pct,
                            ..Limits::default()
                        },
                        ..fast_writer(300)
                    };
                    let report = ok(&scenario);
                    assert!(report.source.is_some(), "{bandwidth} {throttle_pct} {seed}");
                }
            }
        }
    }
}

#[test]
fn an_idle_guest_on_a_long_link_is_not_asked_again_and_again() {
    let scenario = Scenario {
        writes: Writes::Idle,
        link: Link {
            latency: Duration::from_millis(150),
            bandwidth: 100_000_000,
        },
        ..Scenario::default()
    };
    let report = ok(&scenario);
    let Some(Outcome::Aborted { detail, .. }) = &report.source else {
        panic!("{:?}", report.source);
    };
    assert!(detail.contains("on this link"), "{detail}");
    assert!(passes(&report) <= 10, "{} passes", passes(&report));
    let near_enough = ok(&Scenario {
        link: Link {
            latency: Duration::from_millis(40),
            ..scenario.link
        },
        ..scenario
    });
    assert_eq!(near_enough.source, Some(Outcome::Completed));
}

#[test]
fn a_harvest_that_takes_long_is_not_taken_for_a_stall() {
    let scenario = Scenario {
        writes: Writes::Idle,
        costs: Costs {
            harvest: Duration::from_secs(40),
            ..Costs::default()
        },
        // A final harvest comes in the pause.
        pause_deadline: Duration::from_secs(100),
        ..Scenario::default()
    };
    assert_eq!(ok(&scenario).source, Some(Outcome::Completed));
}
