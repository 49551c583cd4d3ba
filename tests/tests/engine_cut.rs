//! Connections that are cut, at every message and within the pages, or that fall silent.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use vmferry_machine::MachineKind;
use vmferry_tests::engine::{
    Guest, Leaks, Over, PageStep, Plan, Script, Step, Under, Way, begin, has_kvm, run, settle,
};

/// How long either side waits for the other where a direction is silent.
const SILENCE: Duration = Duration::from_millis(600);

async fn again(guest: Guest, over: Over) -> Guest {
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
    assert!(ended.completed(), "{}", ended.why_source());
    settle(guest, ended).await
}

/// Cuts at every message that goes `way`, until there are no more.
async fn cut_sweep(over: Over, way: Way) {
    let mut guest = again(Guest::small().await, over).await;
    let leaks = Leaks::count();
    let mut aborted = 0;
    for number in 1.. {
        let script = Script::new(move |said, _| {
            if said.connection == 1 && said.way == way && said.number == number {
                Step::Cut
            } else {
                Step::Pass
            }
        });
        let plan = Plan {
            over,
            ..Plan::scripted(&script)
        };
        let ended = begin(&guest, &plan).await.end().await;
        let committed = script.has(Way::Out, "Commit");
        assert_eq!(
            ended.completed(),
            committed,
            "{number}: {}",
            ended.why_source()
        );
        if committed {
            guest = settle(guest, ended).await;
        } else {
            aborted += 1;
            guest = again(settle(guest, ended).await, over).await;
        }
        leaks.none().await;
        if script.count(way) < number {
            break;
        }
    }
    assert!(aborted >= 3, "{aborted} aborts");
}

#[test]
fn after_the_handover_the_source_comes_back_to_finish() {
    run(async {
        let mut guest = Guest::small().await;
        for over in Over::ALL {
            for name in ["Commit", "Resumed"] {
                let script = Script::new(move |said, _| {
                    if said.name == name && said.of_kind == 1 {
                        Step::Cut
                    } else {
                        Step::Pass
                    }
                });
                let plan = Plan {
                    over,
                    linger: SILENCE * 4,
                    ..Plan::scripted(&script)
                };
                let ended = begin(&guest, &plan).await.end().await;
                assert!(
                    ended.completed(),
                    "{over:?}, {name}: {}",
                    ended.why_source()
                );
                assert!(script.has(Way::Out, "Rejoin") && script.connections() > 1);
                guest = settle(guest, ended).await;
            }
        }
    });
}

#[test]
fn a_cut_at_each_message_from_the_source() {
    run(cut_sweep(Over::Memory, Way::Out));
}

#[test]
fn a_cut_at_each_message_to_the_source() {
    run(cut_sweep(Over::Memory, Way::Back));
}

#[test]
fn a_cut_at_each_message_from_the_source_by_tcp() {
    run(cut_sweep(Over::Tcp, Way::Out));
}

/// A migration in which `way` is silent from the first `name` on.
fn silent_from(way: Way, name: &'static str) -> Arc<Script> {
    Script::new(move |said, _| {
        if said.connection == 1 && said.way == way && said.name == name {
            Step::Hold
        } else {
            Step::Pass
        }
    })
}

#[test]
fn a_direction_that_falls_silent() {
    run(async {
        let mut guest = Guest::small().await;
        let from = [
            (Way::Out, "Hello"),
            (Way::Out, "Offer"),
            (Way::Out, "PassBegin"),
            (Way::Out, "State"),
            (Way::Out, "AllSent"),
            (Way::Out, "Commit"),
            (Way::Out, "Bye"),
            (Way::Back, "Welcome"),
            (Way::Back, "Accept"),
            (Way::Back, "Ack"),
            (Way::Back, "Prepared"),
            (Way::Back, "Resumed"),
        ];
        for (way, name) in from {
            let script = silent_from(way, name);
            let plan = Plan {
                silence: SILENCE,
                // Long enough for a source that has to find out first.
                linger: SILENCE * 4,
                ..Plan::scripted(&script)
            };
            let ended = begin(&guest, &plan).await.end().await;
            let committed = script.has(Way::Out, "Commit");
            assert_eq!(
                ended.completed(),
                committed,
                "{name}: {}",
                ended.why_source()
            );
            guest = settle(guest, ended).await;
        }
        again(guest, Over::Memory).await;
    });
}

#[test]
fn page_streams_that_are_cut_or_fall_silent() {
    run(async {
        let mut guest = Guest::small().await;
        let full = Script::clean();
        let ended = begin(&guest, &Plan::scripted(&full)).await.end().await;
        guest = settle(guest, ended).await;
        let leaks = Leaks::count();
        let last = full.frames();
        assert!(last > 4, "{last} frames");
        let step = |fault: usize| match fault {
            0 => PageStep::Cut,
            1 => PageStep::CutStream,
            2 => PageStep::Truncate(0),
            3 => PageStep::Truncate(1),
            4 => PageStep::Truncate(13),
            5 => PageStep::Truncate(200),
            _ => PageStep::Hold,
        };
        for fault in 0..7 {
            for at in [0, 1, last / 2] {
                let script = Script::pages(move |frame| {
                    if frame.number == at {
                        step(fault)
                    } else {
                        PageStep::Pass
                    }
                });
                // A stream that is silently lost is given up after three of these.
                let plan = Plan {
                    silence: SILENCE / 2,
                    ..Plan::scripted(&script)
                };
                let ended = begin(&guest, &plan).await.end().await;
                assert!(!ended.completed(), "fault {fault} at {at}");
                let why = ended.why_source().to_owned();
                let known = ["page", "connection", "switchover"]
                    .iter()
                    .any(|w| why.contains(w));
                assert!(known, "fault {fault} at {at}: {why}");
                guest = settle(guest, ended).await;
                leaks.none().await;
            }
        }
        again(guest, Over::Memory).await;
    });
}

/// Neither side knows where the guest may run: from the commit on nothing passes, on any
/// connection.
async fn undecided(guest: &Guest) -> Under {
    let script = Script::new(|said, _| {
        if said.connection > 1 || said.name == "Commit" {
            Step::Cut
        } else {
            Step::Pass
        }
    });
    let plan = Plan {
        reconnect_for: Duration::from_millis(500),
        ..Plan::scripted(&script)
    };
    let mut under = begin(guest, &plan).await;
    let end = (&mut under.source.ended).await.unwrap();
    let undecided = format!("{:?}", end.outcome);
    assert!(undecided.contains("Undecided"), "{undecided}");
    assert_eq!(guest.machine.state(), vmferry_machine::MachineState::Paused);
    // The destination, prepared, waits: it may not run the guest either.
    assert!(under.destination.arrived.try_recv().is_err());
    assert!(under.destination.ended.try_recv().is_err());
    under
}

#[test]
fn a_destination_that_does_not_come_back_leaves_the_guest_to_an_operator_who_takes_it_there() {
    run(async {
        let guest = Guest::small().await;
        let mut under = undecided(&guest).await;
        let operator = under.destination.operator();
        operator.decide(true).await.unwrap();
        let mut there = under.arrive().await;
        there.verify().await;
        // Said twice it is the same, and it cannot be taken back.
        operator.decide(true).await.unwrap();
        let why = operator.decide(false).await.unwrap_err();
        assert!(why.contains("runs here already"), "{why}");
        assert_eq!(guest.machine.state(), vmferry_machine::MachineState::Paused);
    });
}

#[test]
fn a_destination_that_does_not_come_back_leaves_the_guest_to_an_operator_who_takes_it_back() {
    run(async {
        let mut guest = Guest::small().await;
        let under = undecided(&guest).await;
        let operator = under.destination.operator();
        operator.decide(false).await.unwrap();
        let end = under.destination.ended.await.unwrap();
        let why = end.failure.unwrap();
        assert!(why.contains("operator"), "{why}");
        assert!(operator.decide(true).await.is_err());
        guest.machine.resume().unwrap();
        guest.verify().await;
        again(guest, Over::Memory).await;
    });
}

#[test]
fn kvm_a_cut_in_pre_copy_and_one_in_the_handover() {
    if !has_kvm() {
        return;
    }
    run(async {
        let workload = "workload=dense ws-mib=4 fill-mib=8 rate=20000 seed=2";
        let mut guest = Guest::boot(MachineKind::Kvm, 2, workload).await;
        for name in ["PassBegin", "State", "AllSent", "Commit", "Bye"] {
            let script = Script::new(move |said, _| {
                if said.connection == 1 && said.name == name {
                    Step::Cut
                } else {
                    Step::Pass
                }
            });
            let plan = Plan {
                over: Over::Quic,
                ..Plan::scripted(&script)
            };
            let ended = begin(&guest, &plan).await.end().await;
            let committed = script.has(Way::Out, "Commit");
            assert_eq!(
                ended.completed(),
                committed,
                "{name}: {}",
                ended.why_source()
            );
            guest = settle(guest, ended).await;
        }
        again(guest, Over::Quic).await;
    });
}
