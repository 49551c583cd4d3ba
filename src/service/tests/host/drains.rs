//! All machines leave a host.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Lab, busy, light, names, runs_unharmed};
use tokio::time::timeout;
use vmferry_service::control::Control;
use vmferry_service::host::Host;
use vmferry_service::model::{Drain, DrainRequest, MigrationOptions, MigrationState, ServiceEvent};

fn drain(to: &[&str], parallel: u32) -> DrainRequest {
    DrainRequest {
        to: to.iter().map(|&to| to.to_owned()).collect(),
        parallel: Some(parallel),
        options: MigrationOptions {
            link_mbit: Some(100),
            ..MigrationOptions::default()
        },
    }
}

async fn over(host: &Host) -> Drain {
    let mut events = host.events();
    let wait = async {
        loop {
            let now = host.drain_state().await.unwrap();
            if now.over {
                return now;
            }
            while !matches!(events.recv().await.unwrap(), ServiceEvent::Drain(_)) {}
        }
    };
    timeout(Duration::from_secs(240), wait)
        .await
        .expect("it hangs")
}

/// Three machines with much to send, and a drain that takes its time with one after the other.
async fn three_to_drain(lab: &Lab) -> (Arc<Host>, Arc<Host>, DrainRequest) {
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    for name in ["1", "2", "3"] {
        a.create(busy(name)).await.unwrap();
    }
    let mut slow = drain(&["b"], 1);
    slow.options.link_mbit = Some(20);
    (a, b, slow)
}

fn all_are(table: &Drain, state: MigrationState) {
    assert!(table.items.iter().all(|i| i.state == state), "{table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn six_machines_leave_three_at_a_time_for_two_hosts() {
    let lab = Lab::new();
    let (a, b, c) = (
        lab.host("a").await,
        lab.host("b").await,
        lab.host("c").await,
    );
    let all = ["1", "2", "3", "4", "5", "6"];
    for name in all {
        a.create(light(name)).await.unwrap();
    }
    // One host would not have this one.
    b.create(light("1")).await.unwrap();
    let mut events = a.events();
    a.drain(drain(&["b", "c"], 3)).await.unwrap();
    let table = over(&a).await;
    assert!(!table.cancelled);
    assert_eq!(table.items.len(), 6);
    for item in &table.items {
        assert_eq!(item.state, MigrationState::Completed, "{item:?}");
        assert!(item.blackout_ms.is_some() && item.total_ms.is_some());
    }
    assert_eq!(table.items[0].to, "c");
    assert!(names(&a).await.is_empty());
    assert_eq!(names(&b).await.len() + names(&c).await.len(), 7);
    let mut moving = std::collections::BTreeSet::new();
    while let Ok(event) = events.try_recv() {
        if let ServiceEvent::Migration(m) = event {
            match m.state.is_over() {
                true => moving.remove(&m.id),
                false => moving.insert(m.id),
            };
            assert!(moving.len() <= 3);
        }
    }
    for name in names(&c).await {
        runs_unharmed(&c, &name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_drain_stops_and_another_takes_what_is_left() {
    let lab = Lab::new();
    let (a, b, slow) = three_to_drain(&lab).await;
    let begun = a.drain(slow.clone()).await.unwrap();
    assert!(!begun.over);
    assert!(
        a.drain(slow)
            .await
            .unwrap_err()
            .to_string()
            .contains("under way")
    );
    a.cancel_drain().await.unwrap();
    let table = over(&a).await;
    assert!(table.cancelled);
    all_are(&table, MigrationState::Cancelled);
    assert_eq!(names(&a).await.len(), 3);
    a.drain(drain(&["b"], 3)).await.unwrap();
    let table = over(&a).await;
    all_are(&table, MigrationState::Completed);
    assert!(names(&a).await.is_empty());
    for name in names(&b).await {
        runs_unharmed(&b, &name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_the_services_death_interrupts_is_taken_up_by_the_next() {
    let lab = Lab::new();
    let (a, b, slow) = three_to_drain(&lab).await;
    let mut events = a.events();
    let mut now = a.drain(slow).await.unwrap();
    while now.items[0].migration.is_none() {
        events.recv().await.unwrap();
        now = a.drain_state().await.unwrap();
    }
    let first = now.items[0].migration.clone().unwrap();
    crate::common::under_way(&a, &first).await;
    lab.kill("a", a).await;
    let a = lab.host("a").await;
    let table = over(&a).await;
    all_are(&table, MigrationState::Completed);
    assert!(names(&a).await.is_empty());
    assert_eq!(names(&b).await, ["1", "2", "3"]);
}
