//! The service is gone in the middle of a migration, and another follows: the outcome is known, and
//! the VM is on one host.

use std::sync::Arc;

use crate::common::{Lab, busy, end, light, moves, names, runs_unharmed, slowly, to, under_way};
use vmferry_service::control::Control;
use vmferry_service::host::Host;
use vmferry_service::model::{Limits, MigrationState};

/// Two hosts, and a machine whose pages are on their way from one to the other, and stay so until
/// the source's limit is lifted, as by the next service.
async fn leaving(lab: &Lab) -> (Arc<Host>, Arc<Host>, String) {
    let a = lab.host_with(lab.holding("a")).await;
    let b = lab.host("b").await;
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    (a, b, id)
}

/// It has come, all know so, and it is unharmed.
async fn has_come(a: &Host, b: &Host, id: &str) {
    for host in [a, b] {
        let over = end(host, id).await;
        assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    }
    assert!(a.migration(id).await.unwrap().blackout_ms.is_some());
    a.report(id).await.unwrap();
    assert!(names(a).await.is_empty());
    runs_unharmed(b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_service_dies_and_another_follows_at_once() {
    let lab = Lab::new();
    let (a, b, id) = leaving(&lab).await;
    lab.kill("a", a).await;
    let a = lab.host("a").await;
    assert!(!a.migration(&id).await.unwrap().state.is_over());
    assert_eq!(a.vm("web").await.unwrap().migration, Some(id.clone()));
    has_come(&a, &b, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_service_is_away_until_the_migration_is_over() {
    let lab = Lab::new();
    let (a, b, id) = leaving(&lab).await;
    a.set_limits(Limits::default());
    lab.kill("a", a).await;
    assert_eq!(end(&b, &id).await.state, MigrationState::Completed);
    let a = lab.host("a").await;
    has_come(&a, &b, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_service_dies_and_another_follows() {
    let lab = Lab::new();
    let (a, b, id) = leaving(&lab).await;
    lab.kill("b", b).await;
    let b = lab.host("b").await;
    a.set_limits(Limits::default());
    has_come(&a, &b, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_cancelled_while_both_services_are_away_leaves_nothing() {
    let lab = Lab::new();
    let (a, b, id) = leaving(&lab).await;
    lab.kill("a", a).await;
    lab.kill("b", b).await;
    let a = lab.host_with(lab.holding("a")).await;
    a.cancel(&id).await.unwrap();
    assert_eq!(end(&a, &id).await.state, MigrationState::Cancelled);
    let b = lab.host("b").await;
    assert_eq!(end(&b, &id).await.state, MigrationState::Cancelled);
    assert!(names(&b).await.is_empty());
    runs_unharmed(&a, "web").await;
    a.set_limits(Limits::default());
    moves(&a, "web", to("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_turn_has_it_under_the_next_service() {
    let lab = Lab::new();
    let mut config = lab.config("a");
    config.limits.outgoing = 0;
    let a = lab.host_with(config).await;
    let b = lab.host("b").await;
    a.create(light("web")).await.unwrap();
    let id = a.migrate("web", to("b")).await.unwrap().id;
    lab.kill("a", a).await;
    let a = lab.host("a").await;
    assert_eq!(end(&a, &id).await.state, MigrationState::Completed);
    end(&b, &id).await;
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_process_that_dies_takes_its_guest_along_and_nothing_else() {
    let lab = Lab::new();
    let (a, b, id) = leaving(&lab).await;
    let pid = a.vm("web").await.unwrap().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(end(&a, &id).await.state, MigrationState::Failed);
    assert!(end(&b, &id).await.state.is_over());
    assert!(names(&b).await.is_empty());
    a.start("web").await.unwrap();
    runs_unharmed(&a, "web").await;
}
