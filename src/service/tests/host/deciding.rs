//! Where a guest is that was handed over, and of which nobody knows whether it arrived: a user's
//! word.

use std::sync::Arc;

use vmferry_journal::{Journal, SledJournal};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;
use vmferry_service::control::{Control, ControlError};
use vmferry_service::host::Host;
use vmferry_service::model::{Decision, Place, VmState};
use vmferry_tests::hosts::kill_processes_of;

use crate::common::{Lab, light, names, runs_unharmed};

/// A host whose machine's process died between the records of a handover.
async fn handed_over(lab: &Lab, last: Record) -> Arc<Host> {
    let a = lab.host("a").await;
    a.create(light("web")).await.unwrap();
    lab.kill("a", a).await;
    let dir = lab.path("a").join("vms").join("web");
    kill_processes_of(&dir);
    let journal = SledJournal::open(&dir.join(vmferry_vmm::JOURNAL)).unwrap();
    journal.append(&[last]).unwrap();
    drop(journal);
    let a = lab.host("a").await;
    let vm = a.vm("web").await.unwrap();
    assert_eq!(vm.state, VmState::Crashed, "{vm:?}");
    assert!(vm.detail.unwrap().contains("vm decide"));
    a
}

fn decision(guest: Place) -> Decision {
    Decision {
        guest,
        certain: true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_here_is_booted_again_when_somebody_says_so_and_not_before() {
    let id = MigrationId([9; 16]);
    for last in [Record::Relinquished(id), Record::Prepared(id)] {
        let lab = Lab::new();
        let a = handed_over(&lab, last).await;
        let why = a.start("web").await.unwrap_err().to_string();
        assert!(why.contains("decide"), "{why}");
        let unsure = Decision {
            guest: Place::Here,
            certain: false,
        };
        let Err(ControlError::Invalid(why)) = a.decide("web", unsure).await else {
            panic!("it is decided without being certain");
        };
        assert!(why.contains("two guests write to the same disks"), "{why}");
        a.decide("web", decision(Place::Here)).await.unwrap();
        a.start("web").await.unwrap();
        runs_unharmed(&a, "web").await;
        let again = a.decide("web", decision(Place::Here)).await;
        assert!(matches!(again, Err(ControlError::Conflict(_))), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_elsewhere_is_forgotten_here() {
    let lab = Lab::new();
    let a = handed_over(&lab, Record::Relinquished(MigrationId([9; 16]))).await;
    a.decide("web", decision(Place::Elsewhere)).await.unwrap();
    assert!(names(&a).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_decided_or_never_was_in_doubt_is_nobodys_to_decide() {
    let lab = Lab::new();
    let a = lab.host("a").await;
    a.create(light("web")).await.unwrap();
    let decide = |host: Arc<Host>| async move { host.decide("web", decision(Place::Here)).await };
    let Err(ControlError::Conflict(why)) = decide(a.clone()).await else {
        panic!("there was nothing to decide");
    };
    assert!(why.contains("nothing to decide"), "{why}");
    // As a service leaves it that has had its process take the guest back, and came no further.
    lab.kill("a", a).await;
    let file = lab.path("a").join("vms/web/spec.json");
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["undecided"] = "09".repeat(16).into();
    std::fs::write(&file, record.to_string()).unwrap();
    let a = lab.host("a").await;
    runs_unharmed(&a, "web").await;
    assert!(matches!(decide(a).await, Err(ControlError::Conflict(_))));
}
