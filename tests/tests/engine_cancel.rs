//! A cancel at every message of a migration: before the handover the guest goes on at the source,
//! later it has no effect.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, OnceLock};

use vmferry_engine::{destination, source};
use vmferry_machine::{MachineKind, MachineState};
use vmferry_protocol::message::AbortCode;
use vmferry_protocol::source::Outcome;
use vmferry_tests::engine::{
    Ended, Guest, Leaks, Over, Plan, Said, Script, Step, Way, begin, has_kvm, run, settle,
};

/// A migration that is cancelled, by the operator of the side `from`, when such a message goes by.
async fn cancelled_when(
    guest: &Guest,
    over: Over,
    from: Way,
    when: impl Fn(&Said) -> bool + Send + Sync + 'static,
) -> (Ended, Arc<Script>) {
    type Cancel = Box<dyn Fn() + Send + Sync>;
    let cancel: Arc<OnceLock<Cancel>> = Arc::default();
    let on_time = cancel.clone();
    let script = Script::new(move |said, _| {
        if when(said) {
            on_time.get().unwrap()();
        }
        Step::Pass
    });
    let plan = Plan {
        over,
        ..Plan::scripted(&script)
    };
    let under = begin(guest, &plan).await;
    let at_source: source::SourceOperator = under.source.operator();
    let at_destination: destination::Operator = under.destination.operator();
    let _ = cancel.set(match from {
        Way::Out => Box::new(move || at_source.cancel()),
        Way::Back => Box::new(move || at_destination.cancel()),
    });
    (under.end().await, script)
}

/// The same, at the `number`-th message that goes `way`; and whether it came to that.
async fn cancelled(guest: &Guest, over: Over, from: Way, way: Way, number: usize) -> (Ended, bool) {
    let when = move |said: &Said| said.way == way && said.number == number;
    let (ended, script) = cancelled_when(guest, over, from, when).await;
    (ended, script.count(way) >= number)
}

#[test]
fn a_cancel_after_the_handover_has_no_effect() {
    run(async {
        let mut guest = Guest::small().await;
        for over in Over::ALL {
            for from in [Way::Out, Way::Back] {
                for name in ["Commit", "Resumed", "Bye"] {
                    let when = move |said: &Said| said.name == name;
                    let (ended, script) = cancelled_when(&guest, over, from, when).await;
                    assert!(ended.completed(), "{over:?}, {from:?}, {name}");
                    assert_eq!(script.connections(), 1);
                    guest = settle(guest, ended).await;
                }
            }
        }
    });
}

/// Cancels at every message that goes `way`, by the operator of the side `from`, until there are
/// no more; after each abort the guest is moved undisturbed.
async fn sweep(over: Over, from: Way, way: Way) {
    let mut guest = Guest::small().await;
    // Once before, for what stays in the process.
    let ended = begin(
        &guest,
        &Plan {
            over,
            ..Plan::default()
        },
    )
    .await
    .end()
    .await;
    guest = settle(guest, ended).await;
    let leaks = Leaks::count();
    let mut aborted = 0;
    for number in 1.. {
        let (ended, reached) = cancelled(&guest, over, from, way, number).await;
        if !reached {
            assert!(ended.completed());
            settle(guest, ended).await;
            break;
        }
        if let Outcome::Aborted { code, detail } = &ended.source.outcome {
            aborted += 1;
            // The destination, asked before it has heard of a source, just ends.
            let hung_up = from == Way::Back && *code == AbortCode::Failed;
            assert!(
                *code == AbortCode::Cancelled || hung_up,
                "{code:?}: {detail}"
            );
            assert!(detail.contains("cancelled") || hung_up, "{detail}");
            let there = ended.why_destination();
            let why = ["cancelled", "Cancelled"].iter().any(|w| there.contains(w));
            assert!(why, "{over:?} {from:?} {way:?} {number}: {there}");
            guest = settle(guest, ended).await;
            let again = begin(
                &guest,
                &Plan {
                    over,
                    ..Plan::default()
                },
            )
            .await
            .end()
            .await;
            assert!(again.completed(), "after {number}: {}", again.why_source());
            guest = settle(guest, again).await;
        } else {
            guest = settle(guest, ended).await;
        }
        leaks.none().await;
    }
    // Hello, Offer, PassBegin, State, AllSent; Welcome, Accept, Acks.
    assert!(aborted >= 3, "{aborted} of them were aborted");
}

#[test]
fn the_source_cancels_at_each_message_from_it() {
    run(sweep(Over::Memory, Way::Out, Way::Out));
}

#[test]
fn the_source_cancels_at_each_message_to_it() {
    run(sweep(Over::Memory, Way::Out, Way::Back));
}

#[test]
fn the_destination_cancels_at_each_message_to_it() {
    run(sweep(Over::Memory, Way::Back, Way::Out));
}

#[test]
fn the_destination_cancels_at_each_message_from_it() {
    run(sweep(Over::Memory, Way::Back, Way::Back));
}

#[test]
fn cancels_at_each_message_from_the_source_by_tcp() {
    run(sweep(Over::Tcp, Way::Out, Way::Out));
}

#[test]
fn cancels_at_each_message_from_the_source_by_quic() {
    run(sweep(Over::Quic, Way::Out, Way::Out));
}

#[test]
fn kvm_a_cancel_in_each_phase_and_a_migration_right_after() {
    if !has_kvm() {
        return;
    }
    run(async {
        let workload = "workload=dense ws-mib=4 fill-mib=8 rate=20000 seed=2";
        let mut guest = Guest::boot(MachineKind::Kvm, 2, workload).await;
        for number in 1..=7 {
            let (ended, _) = cancelled(&guest, Over::Tcp, Way::Out, Way::Out, number).await;
            let aborted = !ended.completed();
            guest = settle(guest, ended).await;
            if aborted {
                let again = begin(&guest, &Plan::default()).await.end().await;
                assert!(again.completed(), "{}", again.why_source());
                guest = settle(guest, again).await;
            }
        }
    });
}

#[test]
fn a_paused_guest_whose_migration_is_cancelled_stays_paused() {
    run(async {
        let mut guest = Guest::small().await;
        guest.machine.pause().unwrap();
        for number in [1, 3, 5] {
            let (ended, _) = cancelled(&guest, Over::Memory, Way::Out, Way::Out, number).await;
            assert!(!ended.completed() && ended.left_there() == 0);
            assert_eq!(guest.machine.state(), MachineState::Paused);
        }
        guest.machine.resume().unwrap();
        guest.verify().await;
    });
}

#[test]
fn a_cancel_before_anybody_is_there() {
    run(async {
        let guest = Guest::small().await;
        let under = begin(&guest, &Plan::default()).await;
        under.source.operator().cancel();
        under.destination.operator().cancel();
        let ended = under.end().await;
        assert!(!ended.completed());
        assert_eq!(ended.why_destination(), "cancelled");
        settle(guest, ended).await;
    });
}
