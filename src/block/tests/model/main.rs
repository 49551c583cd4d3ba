//! Random schedules of a guest, two hosts, their journals and a disk that does what it was asked
//! whenever it likes: requests, completions, handovers, aborts, crashes, reboots. What must hold
//! is in `world.rs`; here is what is run, and that drivers with planted bugs are caught.

mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use world::{Bug, World};

/// Choices of one schedule; each decides one step.
const STEPS: usize = 90;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(0x7665_7272),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    })
}

fn schedules(cases: u32, bug: Option<Bug>) -> Result<(), (String, Vec<u16>)> {
    let choices = prop::collection::vec(any::<u16>(), 1..STEPS);
    let ran = runner(cases).run(&choices, |choices| {
        let mut world = World::new(bug);
        for choice in choices {
            world.step(choice).map_err(TestCaseError::fail)?;
        }
        world.come_to_rest().map_err(TestCaseError::fail)
    });
    match ran {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, choices)) => Err((reason.message().to_owned(), choices)),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn a_hundred_thousand_schedules_lose_no_acknowledged_write() {
    if let Err((why, choices)) = schedules(100_000, None) {
        panic!("{why}\nafter the choices {choices:?}");
    }
}

/// The schedules come to everything that they are about; otherwise they would prove nothing.
#[test]
fn the_schedules_reach_what_they_are_about() {
    let mut seen = world::Seen::default();
    let choices = prop::collection::vec(any::<u16>(), 1..STEPS);
    let ran = runner(3000).run(&choices, |choices| {
        let mut world = World::new(None);
        for choice in choices {
            world.step(choice).map_err(TestCaseError::fail)?;
        }
        seen_add(&world);
        Ok(())
    });
    assert!(ran.is_ok());
    SEEN.with_borrow(|all| seen = *all);
    assert!(
        seen.handovers > 200
            && seen.unsettled > 200
            && seen.kept_back > 100
            && seen.aborts > 50
            && seen.crashes > 100
            && seen.reboots > 50
            && seen.late > 50,
        "{seen:?}"
    );
}

thread_local! {
    static SEEN: std::cell::RefCell<world::Seen> = const { std::cell::RefCell::new(world::Seen::NONE) };
}

fn seen_add(world: &World) {
    SEEN.with_borrow_mut(|all| all.add(&world.seen));
}

fn caught(bug: Bug) {
    let (why, choices) = schedules(100_000, Some(bug)).expect_err("the planted bug is not caught");
    assert!(why.starts_with("block"), "{why}");
    // What is left of the schedule shows the bug again.
    assert!(choices.len() < STEPS);
}

#[test]
fn a_destination_without_fences_is_caught() {
    caught(Bug::NoFence);
}

#[test]
fn a_destination_that_is_prepared_before_its_journal_is_flushed_is_caught() {
    caught(Bug::PreparedBeforeFlush);
}

#[test]
fn a_destination_that_reissues_before_settlement_is_caught() {
    caught(Bug::ReissuesUnsettled);
}
