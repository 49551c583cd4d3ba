//! Machines that do not do as they are told, at each side.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use vmferry_machine::{MachineKind, MachineState};
use vmferry_tests::engine::{
    FaultyMachine, Guest, Leaks, Op, Plan, Script, Step, Way, begin, has_kvm, run, settle,
};

async fn clean(guest: Guest) -> Guest {
    let ended = begin(&guest, &Plan::default()).await.end().await;
    assert!(ended.completed(), "{}", ended.why_source());
    settle(guest, ended).await
}

async fn source_fails(kind: MachineKind) {
    let workload = "workload=dense ws-mib=1 fill-mib=4 rate=2000 seed=9";
    let mut guest = clean(Guest::boot(kind, 1, workload).await).await;
    let leaks = Leaks::count();
    for (op, words) in [(Op::Pause, "pausing"), (Op::Save, "saving")] {
        guest = guest.with(|machine| FaultyMachine::over(machine, op, 1));
        let ended = begin(&guest, &Plan::default()).await.end().await;
        assert!(!ended.completed());
        let (here, there) = (ended.why_source(), ended.why_destination());
        assert!(here.contains(words) && here.contains("on demand"), "{here}");
        assert!(
            there.contains("Switchover") && there.contains("on demand"),
            "{there}"
        );
        guest = settle(guest, ended).await;
        leaks.none().await;
        guest = clean(guest).await;
    }
}

#[test]
fn a_machine_that_cannot_be_paused_or_saved_goes_on_at_the_source() {
    run(source_fails(MachineKind::Process));
}

#[test]
fn kvm_a_machine_that_cannot_be_paused_or_saved_goes_on_at_the_source() {
    if has_kvm() {
        run(source_fails(MachineKind::Kvm));
    }
}

#[test]
fn a_destination_that_cannot_make_or_set_the_machine() {
    run(async {
        let mut guest = clean(Guest::small().await).await;
        let leaks = Leaks::count();
        let plan = Plan {
            wrap: Arc::new(|machine| FaultyMachine::over(machine, Op::Restore, 1)),
            ..Plan::default()
        };
        let ended = begin(&guest, &plan).await.end().await;
        assert!(!ended.completed());
        let why = ended.why_source();
        assert!(
            why.contains("Restoring") && why.contains("on demand"),
            "{why}"
        );
        assert!(ended.why_destination().contains("on demand"));
        guest = settle(guest, ended).await;
        leaks.none().await;
        clean(guest).await;
    });
}

/// The right to run is the destination's: it keeps the machine, and says what is the matter by
/// its state.
#[test]
fn a_guest_that_cannot_be_resumed_at_the_destination_is_there_and_paused() {
    run(async {
        let guest = Guest::small().await;
        let plan = Plan {
            wrap: Arc::new(|machine| FaultyMachine::over(machine, Op::Resume, 1)),
            ..Plan::default()
        };
        let ended = begin(&guest, &plan).await.end().await;
        assert!(ended.completed(), "{}", ended.why_source());
        assert_eq!(guest.machine.state(), MachineState::Stopped);
        let mut there = ended.arrived.unwrap();
        assert_eq!(there.machine.state(), MachineState::Paused);
        there.machine.resume().unwrap();
        there.verify().await;
    });
}

#[test]
fn a_guest_that_cannot_be_resumed_at_the_source_is_there_and_paused_and_both_reasons_are_told() {
    run(async {
        for at in ["State", "AllSent"] {
            let guest = Guest::small().await;
            let guest = guest.with(|machine| FaultyMachine::over(machine, Op::Resume, 1));
            let script = Script::new(move |said, _| {
                if said.connection == 1 && said.name == at {
                    Step::Cut
                } else {
                    Step::Pass
                }
            });
            let ended = begin(&guest, &Plan::scripted(&script)).await.end().await;
            let why = ended.why_source();
            assert!(
                why.contains("connection") && why.contains("on demand"),
                "{why}"
            );
            assert!(ended.arrived.is_none() && ended.left_there() == 0);
            assert!(!ended.why_destination().is_empty() && !script.has(Way::Out, "Commit"));
            assert_eq!(guest.machine.state(), MachineState::Paused);
            guest.machine.resume().unwrap();
            let mut guest = guest;
            guest.verify().await;
            clean(guest).await;
        }
    });
}
