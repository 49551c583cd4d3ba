//! Random guests, links and machines, with several things going wrong in one migration. The checks
//! of the simulator (one owner after every step, no page lost) are the assertions.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vmferry_protocol::destination::DestinationOutcome;
use vmferry_protocol::message::RunState;
use vmferry_protocol::source::Outcome;
use vmferry_tests::sim::{
    Costs, Cut, CutKind, Direction, DiskFault, Faults, Link, Scenario, Side, Trigger, Writes, run,
};

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Source), Just(Side::Destination)]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::ToSource), Just(Direction::ToDestination)]
}

fn cut() -> impl Strategy<Value = Cut> {
    let at = prop_oneof![
        (0u64..300).prop_map(Trigger::Step),
        (direction(), 0u64..40).prop_map(|(d, n)| Trigger::Message(d, n)),
    ];
    let kind = prop_oneof![Just(CutKind::Reset), Just(CutKind::BlackHole)];
    let refused = prop::option::weighted(0.8, 0u32..4);
    (at, kind, refused).prop_map(|(at, kind, refused)| Cut { at, kind, refused })
}

fn faults() -> impl Strategy<Value = Faults> {
    let disk = prop_oneof![Just(DiskFault::Fails), Just(DiskFault::FailsAfterWriting)];
    let disk = (side(), 0u64..3, disk);
    (
        prop::option::of(cut()),
        prop::option::weighted(0.2, (side(), 0u64..300)),
        prop::option::weighted(0.2, (side(), 0u64..300)),
        prop::option::weighted(0.3, disk),
        prop::option::weighted(0.3, (direction(), 0u64..40)),
        prop::option::weighted(0.2, (side(), 0u64..4)),
    )
        .prop_map(|(cut, kill, cancel, disk, duplicate, machine)| Faults {
            cut,
            kill,
            cancel,
            disk,
            duplicate,
            machine,
            bug: None,
        })
}

fn writes() -> impl Strategy<Value = Writes> {
    prop_oneof![
        Just(Writes::Idle),
        (0u64..150_000).prop_map(|rate| Writes::Uniform { rate }),
        (1u64..600, 0u64..400_000).prop_map(|(pages, rate)| Writes::Hot { pages, rate }),
    ]
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let us = |range: std::ops::Range<u64>| range.prop_map(Duration::from_micros);
    let link = (us(1..5000), 5_000_000u64..5_000_000_000)
        .prop_map(|(latency, bandwidth)| Link { latency, bandwidth });
    let costs = (
        us(0..500),
        us(0..500),
        us(0..500),
        us(0..3000),
        us(0..20_000),
    )
        .prop_map(|(read, apply, pause, state, persist)| Costs {
            read,
            apply,
            pause,
            state,
            persist,
            ..Costs::default()
        });
    let run_state = prop_oneof![3 => Just(RunState::Running), 1 => Just(RunState::Paused)];
    let sizes = (0u64..1500, 1u16..9, 1u64..1024, 1usize..100_000);
    (
        writes(),
        link,
        costs,
        run_state,
        sizes,
        any::<u64>(),
        faults(),
        any::<bool>(),
    )
        .prop_map(
            |(writes, link, costs, run_state, sizes, seed, faults, again)| Scenario {
                writes,
                link,
                costs,
                run_state,
                touched: sizes.0,
                streams: sizes.1,
                window_pages: sizes.2,
                state_bytes: sizes.3,
                seed,
                faults,
                again,
                ..Scenario::default()
            },
        )
}

/// The same cases in every run.
fn seeded(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0x0066_6572_7279),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(seeded(1500))]

    #[test]
    fn whatever_goes_wrong_there_is_one_owner_and_no_page_is_lost(scenario in scenario()) {
        if let Err((violation, trace)) = run(&scenario) {
            return Err(TestCaseError::fail(format!("{violation}\n{trace}")));
        }
    }

    #[test]
    fn when_nothing_goes_wrong_both_sides_agree_on_the_end(
        scenario in scenario().prop_map(|s| Scenario { faults: Faults::default(), ..s })
    ) {
        match run(&scenario) {
            Err((violation, trace)) => return Err(TestCaseError::fail(format!("{violation}\n{trace}"))),
            Ok(report) => match (&report.source, &report.destination) {
                (Some(Outcome::Completed), Some(DestinationOutcome::Completed)) => {
                    prop_assert_eq!(report.active, [false, true]);
                }
                // A guest may write faster than the link carries.
                (Some(Outcome::Aborted { .. }), Some(DestinationOutcome::Aborted { .. })) => {
                    prop_assert_eq!(report.active, [true, false]);
                }
                other => prop_assert!(false, "{:?}", other),
            },
        }
    }
}
