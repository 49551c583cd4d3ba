//! `host drain`.

use std::time::Duration;

use tokio::time::sleep;
use vmferry_service::model::{Drain, DrainItem, MigrationState as S};

use super::*;
use crate::remote::fake::{drain, item, migration};

const DRAIN: &str = "host drain --to host-b --to host-c --parallel 2 --wait";

fn done(name: &str) -> DrainItem {
    DrainItem {
        blackout_ms: Some(12.34),
        total_ms: Some(4200.0),
        ..item(name, S::Completed)
    }
}

fn failed(name: &str) -> DrainItem {
    DrainItem {
        reason: Some("host-b is full".to_owned()),
        ..item(name, S::Failed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_goes_past_failures_and_ends_with_a_table() {
    let fake = fake();
    let begun = drain(
        false,
        vec![
            item("a", S::Running),
            item("b", S::Running),
            item("c", S::Queued),
        ],
    );
    let half = drain(false, vec![done("a"), failed("b"), item("c", S::Running)]);
    let over = drain(true, vec![done("a"), failed("b"), done("c")]);
    fake.drains.then(Ok(begun.clone())).then(Ok(begun));
    let ran = ran_while(&fake, DRAIN, async |fake, _| {
        sleep(Duration::from_millis(10)).await;
        let mut moving = with_pass(migration(S::Running), 1, 100);
        moving.id = "c".to_owned();
        if let Some(progress) = &mut moving.progress {
            progress.bytes_per_second = f64::from(95 << 20);
        }
        fake.happen(event(moving));
        // The plain display shows a status every five seconds at most.
        sleep(Duration::from_secs(5)).await;
        let event = |drain: Drain| Ok(Happening::Event(Box::new(ServiceEvent::Drain(drain))));
        fake.happen(event(half));
        fake.happen(event(over));
    })
    .await;
    assert_eq!(ran.exit, Ok(Exit::Failed));
    assert_eq!(
        ran.err,
        "drain · 0 of 3 moved · 2 under way · 1 wait\n\
         a to host-b: completed in 4.2 s, blackout 12.3 ms\n\
         b to host-b: failed: host-b is full\n\
         drain · 1 of 3 moved · 1 under way · 0 wait · 1 not moved · 95 MiB/s\n\
         c to host-b: completed in 4.2 s, blackout 12.3 ms\n"
    );
    assert_eq!(
        ran.out,
        "VM  TO      STATE      TOTAL  BLACKOUT  WHY\n\
         a   host-b  completed  4.2 s   12.3 ms\n\
         b   host-b  failed         –         –  host-b is full\n\
         c   host-b  completed  4.2 s   12.3 ms\n\
         drain · 2 of 3 moved · 0 under way · 0 wait · 1 not moved\n"
    );
    assert_eq!(fake.calls(), ["events", "drain host-b host-c"]);
}

#[tokio::test(start_paused = true)]
async fn the_worst_end_is_the_exit_code() {
    for (items, exit) in [
        (vec![done("a")], Exit::Ok),
        (vec![], Exit::Ok),
        (vec![done("a"), item("b", S::Queued)], Exit::Cancelled),
        (vec![item("a", S::Cancelled), failed("b")], Exit::Failed),
        (vec![failed("a"), item("b", S::Undecided)], Exit::Undecided),
    ] {
        let fake = fake();
        fake.drains.then(Ok(drain(true, items)));
        let waited = ran(&fake, DRAIN).await;
        assert_eq!(waited.exit, Ok(exit));
        let shown = ran(&fake, "host drain --show").await;
        assert_eq!((shown.exit, shown.out), (Ok(exit), waited.out));
    }
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_cancels_a_drain() {
    let fake = fake();
    fake.drains
        .then(Ok(drain(false, vec![item("a", S::Running)])));
    fake.drain_cancels.then(Ok(Drain {
        cancelled: true,
        ..drain(true, vec![item("a", S::Cancelled)])
    }));
    let ran = ran_while(&fake, DRAIN, async |_, ends| {
        sleep(Duration::from_millis(10)).await;
        ends.interrupt.send(()).unwrap();
    })
    .await;
    assert_eq!(ran.exit, Ok(Exit::Cancelled));
    assert!(ran.err.contains("asking to cancel the drain"), "{ran:?}");
    assert!(
        ran.out
            .ends_with("drain, cancelled · 0 of 1 moved · 0 under way · 0 wait · 1 not moved\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_can_be_begun_and_left_and_cancelled_by_another_command() {
    let fake = fake();
    fake.drains
        .then(Ok(drain(false, vec![item("a", S::Queued)])));
    fake.drain_cancels
        .then(Ok(drain(false, vec![item("a", S::Queued)])));
    for words in ["host drain --to b", "host drain --cancel"] {
        let ran = ran(&fake, words).await;
        assert_eq!(ran.exit, Ok(Exit::Ok));
        assert!(ran.err.contains("host drain --show --wait"), "{ran:?}");
    }
    let json = ran(&fake, "host drain --show --json").await;
    let document: Drain = serde_json::from_str(&json.out).unwrap();
    assert_eq!(document.items.len(), 1);
}
