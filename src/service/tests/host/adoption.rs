//! The service is gone in the middle of a migration, and another follows: the outcome is known, and
//! the VM is on one host.

use crate::common::{Lab, busy, end, names, runs_unharmed, slowly, to, under_way};
use vmferry_service::control::Control;
use vmferry_service::model::MigrationState;

#[tokio::test(flavor = "multi_thread")]
async fn the_source_service_dies_and_another_follows_at_once() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    lab.kill("a", a).await;
    let a = lab.host("a").await;
    assert!(!a.migration(&id).await.unwrap().state.is_over());
    assert_eq!(a.vm("web").await.unwrap().migration, Some(id.clone()));
    let over = end(&a, &id).await;
    assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    assert!(over.blackout_ms.is_some());
    a.report(&id).await.unwrap();
    end(&b, &id).await;
    assert!(names(&a).await.is_empty());
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_service_is_away_until_the_migration_is_over() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    lab.kill("a", a).await;
    assert_eq!(end(&b, &id).await.state, MigrationState::Completed);
    let a = lab.host("a").await;
    let over = end(&a, &id).await;
    assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    a.report(&id).await.unwrap();
    assert!(names(&a).await.is_empty());
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_service_dies_and_another_follows() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    lab.kill("b", b).await;
    let b = lab.host("b").await;
    assert_eq!(end(&a, &id).await.state, MigrationState::Completed);
    assert_eq!(end(&b, &id).await.state, MigrationState::Completed);
    assert!(names(&a).await.is_empty());
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_cancelled_while_both_services_are_away_leaves_nothing() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    lab.kill("a", a).await;
    lab.kill("b", b).await;
    let a = lab.host("a").await;
    a.cancel(&id).await.unwrap();
    assert_eq!(end(&a, &id).await.state, MigrationState::Cancelled);
    let b = lab.host("b").await;
    assert_eq!(end(&b, &id).await.state, MigrationState::Cancelled);
    assert!(names(&b).await.is_empty());
    runs_unharmed(&a, "web").await;
    crate::common::moves(&a, "web", to("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_turn_has_it_under_the_next_service() {
    let lab = Lab::new();
    let mut config = lab.config("a");
    config.limits.outgoing = 0;
    let a = lab.host_with(config).await;
    let b = lab.host("b").await;
    a.create(crate::common::light("web")).await.unwrap();
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
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    let pid = a.create(busy("web")).await.unwrap().pid.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(end(&a, &id).await.state, MigrationState::Failed);
    assert!(end(&b, &id).await.state.is_over());
    assert!(names(&b).await.is_empty());
    a.start("web").await.unwrap();
    runs_unharmed(&a, "web").await;
}
