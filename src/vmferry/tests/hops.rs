//! A guest that moves again and again: nothing is lost, and nothing is left behind in the VM
//! processes.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use common::demo::demo;
use common::lab::{Lab, Move};
use vmferry_engine::report::ReportOutcome;
use vmferry_machine::MachineKind;
use vmferry_vmm::api::Request;

on_each_machine!(
    nine_hops_lose_nothing,
    processes_that_received_and_sent_keep_nothing,
    a_paused_guest_stays_paused_wherever_it_is,
);

async fn nine_hops_lose_nothing(kind: MachineKind) {
    let ran = demo(&format!(
        "--machine {} --workload dense --hops 9",
        kind.name()
    ));
    let report = ran.completed();
    let earlier = report["earlier_hops"].as_array().unwrap();
    assert_eq!(earlier.len(), 8);
    assert!(earlier.iter().all(|hop| hop["outcome"] == "completed"));
    assert!(!ran.stderr.contains("WARN"), "{}", ran.stderr);
}

async fn processes_that_received_and_sent_keep_nothing(kind: MachineKind) {
    let lab = Lab::new();
    let mut hosts = [
        lab.host("a").await,
        lab.host("b").await,
        lab.host("c").await,
    ];
    hosts[0].boot(common::busy_guest(kind)).await;
    let mut first_round = Vec::new();
    for hop in 0..9 {
        let [a, b, c] = &mut hosts;
        let (from, to) = match hop % 3 {
            0 => (a, b),
            1 => (b, c),
            _ => (c, a),
        };
        let transport = if hop / 3 == 1 { "tcp" } else { "quic" };
        let hop = Move::new(from, to).over(transport);
        hop.complete(from, to).await;
        to.runs_unharmed().await;
        if first_round.len() < 3 && hop_ends_round(from.name.as_str()) {
            for host in &mut hosts {
                first_round.push(host.used().await);
            }
        }
    }
    for (host, most) in hosts.iter_mut().zip(first_round) {
        host.settles(most).await;
    }
}

/// The guest is back where it began.
fn hop_ends_round(from: &str) -> bool {
    from == "c"
}

async fn a_paused_guest_stays_paused_wherever_it_is(kind: MachineKind) {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(common::busy_guest(kind)).await;
    a.call(Request::Pause).await.unwrap();
    // A move that is given up lets it run no more than one that completes.
    let slow = Move::new(&a, &b).slow();
    slow.begin(&mut a, &mut b).await;
    a.progress(|line| line.phase == "precopy").await;
    a.call(Request::Cancel).await.unwrap();
    a.stays(ReportOutcome::Cancelled).await;
    b.stops_waiting().await;
    assert_eq!(a.status().await.machine, "paused");

    let hop = Move::new(&a, &b);
    hop.complete(&mut a, &mut b).await;
    assert_eq!(b.status().await.machine, "paused");
    b.call(Request::Resume).await.unwrap();
    b.runs_unharmed().await;
}
