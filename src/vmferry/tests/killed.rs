//! Either VM process is killed while the guest moves: the other says why the migration failed, the
//! guest goes on where it is, and the next migration completes.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use common::lab::{Lab, Move};
use vmferry_engine::report::ReportOutcome;
use vmferry_machine::MachineKind;

on_each_machine!(
    destination_over_tcp,
    destination_over_quic,
    source_over_tcp,
    source_over_quic,
);

async fn destination_over_tcp(kind: MachineKind) {
    destination(kind, "tcp").await;
}

async fn destination_over_quic(kind: MachineKind) {
    destination(kind, "quic").await;
}

async fn source_over_tcp(kind: MachineKind) {
    source(kind, "tcp").await;
}

async fn source_over_quic(kind: MachineKind) {
    source(kind, "quic").await;
}

async fn destination(kind: MachineKind, transport: &str) {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(common::busy_guest(kind)).await;
    let used = a.used_with_ram().await;
    let slow = Move::new(&a, &b).over(transport).slow();
    slow.begin(&mut a, &mut b).await;
    a.progress(|line| line.phase == "precopy").await;
    b.kill().await;
    let reason = a.stays(ReportOutcome::Failed).await;
    assert!(
        reason.contains("connection to the destination was lost"),
        "{reason}"
    );
    a.runs_unharmed().await;
    a.settles(used).await;

    let mut c = lab.host("c").await;
    let again = Move::new(&a, &c).over(transport);
    again.complete(&mut a, &mut c).await;
    c.runs_unharmed().await;
}

async fn source(kind: MachineKind, transport: &str) {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    let used = b.used().await;
    a.boot(common::busy_guest(kind)).await;
    let slow = Move::new(&a, &b).over(transport).slow();
    slow.begin(&mut a, &mut b).await;
    a.progress(|line| line.phase == "precopy").await;
    a.kill().await;
    let received = b.arrival().await;
    assert!(!received.completed, "{received:?}");
    let reason = received.reason.expect("a reason");
    assert!(
        reason.contains("connection to the source was lost"),
        "{reason}"
    );
    b.is_empty().await;
    b.settles(used).await;

    let mut c = lab.host("c").await;
    c.boot(common::busy_guest(kind)).await;
    let again = Move::new(&c, &b).over(transport);
    again.complete(&mut c, &mut b).await;
    b.runs_unharmed().await;
}
