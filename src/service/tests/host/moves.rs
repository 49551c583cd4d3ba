//! Machines move between hosts; some do not, and the guest is unharmed.

use crate::common::{Lab, busy, end, light, moves, names, runs_unharmed, slowly, to, under_way};
use vmferry_engine::report::ReportOutcome;
use vmferry_service::control::{Control, ControlError};
use vmferry_service::model::{Direction, MigrationState, VmState};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_there_and_back() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(light("web")).await.unwrap();
    let preflight = a.preflight("web", &to("b")).await.unwrap();
    assert_eq!(preflight.problems, []);
    assert!(preflight.clock_ahead_ms.unwrap().abs() < 60_000.0);
    let over = moves(&a, "web", to("b")).await;
    assert!(over.blackout_ms.is_some() && over.total_ms.is_some() && over.ended_ms.is_some());
    assert!(names(&a).await.is_empty());
    assert!(!lab.path("a/vms/web").exists());
    let report = a.report(&over.id).await.unwrap();
    assert_eq!(report.outcome, ReportOutcome::Completed);
    assert_eq!(report.migration_id, over.id);
    let there = end(&b, &over.id).await;
    assert_eq!(there.direction, Direction::Incoming);
    assert_eq!(there.state, MigrationState::Completed);
    assert_eq!(there.peer, "a");
    runs_unharmed(&b, "web").await;
    // A process machine has nothing to say; its console can be read all the same.
    assert_eq!(b.console("web", 1000).await.unwrap().serial_bytes, 0);
    let mut back = to("a");
    back.options.transport = Some("tcp".to_owned());
    let over = moves(&b, "web", back).await;
    end(&a, &over.id).await;
    runs_unharmed(&a, "web").await;
    assert!(names(&b).await.is_empty());
    assert_eq!(a.migrations().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_machine_arrives_paused() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(light("web")).await.unwrap();
    a.pause("web").await.unwrap();
    let over = moves(&a, "web", to("b")).await;
    end(&b, &over.id).await;
    assert_eq!(b.vm("web").await.unwrap().state, VmState::Paused);
    b.resume("web").await.unwrap();
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_leaves_everything_as_it_was() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a").await, lab.host("b").await);
    a.create(busy("web")).await.unwrap();
    let id = a.migrate("web", slowly("b")).await.unwrap().id;
    under_way(&a, &id).await;
    for refused in [a.pause("web").await, a.stop("web").await] {
        assert!(matches!(refused, Err(ControlError::Conflict(_))));
    }
    let again = a.migrate("web", to("b")).await.unwrap_err();
    assert!(again.to_string().contains(&id), "{again}");
    assert_eq!(b.vm("web").await.unwrap().state, VmState::Arriving);
    a.cancel(&id).await.unwrap();
    assert_eq!(end(&a, &id).await.state, MigrationState::Cancelled);
    assert_eq!(end(&b, &id).await.state, MigrationState::Cancelled);
    assert!(names(&b).await.is_empty());
    runs_unharmed(&a, "web").await;
    let late = a.cancel(&id).await.unwrap_err();
    assert!(late.to_string().contains("over"), "{late}");
    assert_eq!(
        a.report(&id).await.unwrap().outcome,
        ReportOutcome::Cancelled
    );
    moves(&a, "web", to("b")).await;
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_stands_against_a_migration_is_said_at_once() {
    let lab = Lab::new();
    let a = lab.host("a").await;
    let mut config = lab.config("b");
    config.limits.vms = 1;
    config.limits.vm_ram_mib = 40;
    let b = lab.host_with(config).await;
    a.create(light("web")).await.unwrap();
    b.create(light("web")).await.unwrap();
    std::fs::write(lab.path("b-keys/ca.pem"), "nothing").unwrap();
    let preflight = a.preflight("web", &to("b")).await.unwrap();
    let areas: Vec<&str> = preflight.problems.iter().map(|p| p.area.as_str()).collect();
    assert_eq!(areas, ["state", "limit", "limit", "certificate"]);
    let id = a.migrate("web", to("b")).await.unwrap().id;
    let over = end(&a, &id).await;
    assert_eq!(over.state, MigrationState::Failed);
    let reason = over.reason.unwrap();
    for problem in &preflight.problems {
        assert!(reason.contains(&problem.what), "{reason}");
    }
    runs_unharmed(&a, "web").await;
    let nobody = a.migrate("web", to("c")).await.unwrap().id;
    let over = end(&a, &nobody).await;
    assert!(over.reason.unwrap().contains("cannot be reached"));
    let unknown = a.migrate("web", to("d")).await.unwrap_err();
    assert!(matches!(unknown, ControlError::Invalid(_)), "{unknown}");
    a.stop("web").await.unwrap();
    let stopped = a.migrate("web", to("b")).await.unwrap_err();
    assert!(stopped.to_string().contains("stopped"), "{stopped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_wait_for_their_turn_here_and_there() {
    let lab = Lab::new();
    let mut config = lab.config("a");
    config.limits.outgoing = 2;
    let a = lab.host_with(config).await;
    let mut config = lab.config("b");
    config.limits.incoming = 1;
    let b = lab.host_with(config).await;
    let vms = ["one", "two", "three"];
    for name in vms {
        a.create(busy(name)).await.unwrap();
    }
    let mut ids = Vec::new();
    for name in vms {
        ids.push(a.migrate(name, slowly("b")).await.unwrap().id);
    }
    let waits = a.migrations().await.into_iter().filter(|m| m.id == ids[2]);
    assert!(waits.clone().all(|m| m.state == MigrationState::Queued));
    // The last one is given up before its turn.
    assert_eq!(
        a.cancel(&ids[2]).await.unwrap().state,
        MigrationState::Cancelled
    );
    for id in &ids[..2] {
        assert_eq!(end(&a, id).await.state, MigrationState::Completed);
    }
    assert_eq!(names(&a).await, ["three"]);
    runs_unharmed(&a, "three").await;
    for name in &vms[..2] {
        runs_unharmed(&b, name).await;
    }
}
