//! Guests with disks on real storage: slow, failing, hanging, gone; VM processes killed meanwhile.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use std::time::Duration;

use common::lab::{Host, Lab, Move};
use vmferry_engine::report::ReportOutcome;
use vmferry_machine::{DiskSource, DiskSpec, DiskStats, MachineConfig, MachineKind};
use vmferry_tests::nbdkit::Nbdkit;
use vmferry_vmm::api::{Answer, Event, Request};

on_each_machine!(
    writes_of_a_second_do_not_keep_the_guest,
    storage_that_hangs_keeps_only_what_overlaps,
    errors_of_the_storage_are_the_guests,
    storage_that_is_rationed,
    a_killed_source_lets_go_of_its_file,
    a_killed_source_on_nbd_is_for_an_operator,
    a_guest_is_not_booted_on_a_disk_in_use,
    disk_that_cannot_be_opened_there,
);

/// A guest that keeps 16 requests in flight, half of them writes, and its RAM still.
fn guest(kind: MachineKind, disk: DiskSpec) -> MachineConfig {
    let work = "workload=idle ws-mib=1 fill-mib=4 fill=0:0:100 disk-depth=16 disk-mib=4 \
                disk-rate=4000 seed=3";
    MachineConfig {
        disks: vec![disk],
        ..common::guest(kind, work)
    }
}

fn file(lab: &Lab) -> DiskSpec {
    let path = lab.path("disk.img");
    let image = std::fs::File::create_new(&path).unwrap();
    image.set_len(4 << 20).unwrap();
    DiskSource::File(path).spec()
}

async fn storage(host: &mut Host) -> DiskStats {
    match host.call(Request::Storage).await.unwrap() {
        Answer::Storage(stats) => stats,
        other => panic!("{other:?}"),
    }
}

/// Waits until the disks of a host's guest are as wanted: nobody tells when they are.
async fn until(host: &mut Host, wanted: impl Fn(&DiskStats) -> bool) -> DiskStats {
    loop {
        let stats = storage(host).await;
        if wanted(&stats) {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn arrived(host: &mut Host) {
    host.event(|event| matches!(event, Event::Arrived { .. }).then_some(()))
        .await;
}

/// The migration ends well on both sides; how many writes were unsettled.
async fn ends(from: &mut Host, to: &mut Host) -> u64 {
    let report = from.departure().await;
    assert_eq!(report.outcome, ReportOutcome::Completed, "{report:?}");
    let received = to.arrival().await;
    assert!(received.completed, "{received:?}");
    report.io.unwrap().unsettled
}

async fn writes_of_a_second_do_not_keep_the_guest(kind: MachineKind) {
    let lab = Lab::new();
    let server = Nbdkit::start(lab.dir(), 4, &["delay", "--", "wdelay=1500ms"]);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, server.disk())).await;
    // All writes that there may be.
    until(&mut a, |s| s.in_flight >= 8).await;
    Move::new(&a, &b).patient().begin(&mut a, &mut b).await;
    arrived(&mut b).await;
    assert_eq!(b.verify().await, "OK");
    assert!(ends(&mut a, &mut b).await > 0);
    assert_eq!(b.verify_settled().await, "OK");
    // And back again.
    Move::new(&b, &a).complete(&mut b, &mut a).await;
    assert_eq!(a.verify_settled().await, "OK");
}

/// A guest that has moved from the first host to the second on a server that hangs since before
/// the pause.
async fn moved_while_it_hangs(lab: &Lab, kind: MachineKind) -> (Nbdkit, Host, Host) {
    let server = Nbdkit::start(lab.dir(), 4, &[]);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, server.disk())).await;
    Move::new(&a, &b)
        .slow()
        .patient()
        .begin(&mut a, &mut b)
        .await;
    // The destination has opened the disk by now.
    a.progress(|line| line.phase == "precopy").await;
    server.hang();
    until(&mut a, |s| s.in_flight == 16).await;
    arrived(&mut b).await;
    (server, a, b)
}

async fn storage_that_hangs_keeps_only_what_overlaps(kind: MachineKind) {
    let lab = Lab::new();
    let (server, mut a, mut b) = moved_while_it_hangs(&lab, kind).await;
    let stats = storage(&mut b).await;
    assert!(stats.fences > 0, "{stats:?}");
    // The guest runs, and its memory is as it was; of its disk it can see nothing now.
    assert_eq!(b.verify().await, "OK");
    let again = Request::Migrate(Move::new(&b, &a).migrate);
    let why = b.call(again).await.unwrap_err().to_string();
    assert!(why.contains("a migration is under way"), "{why}");
    server.go_on();
    assert!(ends(&mut a, &mut b).await > 0);
    assert_eq!(b.verify_settled().await, "OK");
    assert_eq!(storage(&mut b).await.fences, 0);
}

async fn errors_of_the_storage_are_the_guests(kind: MachineKind) {
    let lab = Lab::new();
    let server = Nbdkit::start(lab.dir(), 4, &["error", "--", "error-rate=10%"]);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, server.disk())).await;
    until(&mut a, |s| s.errors > 10).await;
    Move::new(&a, &b).complete(&mut a, &mut b).await;
    until(&mut b, |s| s.errors > 10).await;
    assert_eq!(b.verify_settled().await, "OK");
}

async fn storage_that_is_rationed(kind: MachineKind) {
    let lab = Lab::new();
    // A fraction of what the guest asks for: its queue is full all the time.
    let server = Nbdkit::start(lab.dir(), 4, &["rate", "--", "rate=8M"]);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, server.disk())).await;
    until(&mut a, |s| s.in_flight == 16).await;
    let report = Move::new(&a, &b).complete(&mut a, &mut b).await;
    let io = report.io.unwrap();
    assert!(io.cancelled + io.unsettled > 0, "{io:?}");
    assert_eq!(b.verify_settled().await, "OK");
}

async fn a_killed_source_lets_go_of_its_file(kind: MachineKind) {
    let lab = Lab::new();
    // Longer than the test takes: what it has never comes to the file.
    let disk = DiskSpec {
        delay_ms: 300_000,
        ..file(&lab)
    };
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, disk)).await;
    until(&mut a, |s| s.in_flight == 16).await;
    Move::new(&a, &b).patient().begin(&mut a, &mut b).await;
    arrived(&mut b).await;
    assert!(storage(&mut b).await.fences > 0);
    a.kill().await;
    // Its lock is free: nothing of it is in flight any more.
    until(&mut b, |s| s.fences == 0 && s.reissued == 16).await;
    assert_eq!(b.verify().await, "OK");
}

async fn a_killed_source_on_nbd_is_for_an_operator(kind: MachineKind) {
    let lab = Lab::new();
    let (mut server, a, mut b) = moved_while_it_hangs(&lab, kind).await;
    let settle = |nobody_else_writes| Request::SettleStorage { nobody_else_writes };
    let why = b.call(settle(false)).await.unwrap_err().to_string();
    assert!(
        why.contains("overwrites what the guest wrote since"),
        "{why}"
    );
    let why = b.call(settle(true)).await.unwrap_err().to_string();
    assert!(why.contains("the source is connected"), "{why}");
    a.kill().await;
    // Whatever it had asked for ends with its server.
    server.kill();
    server.start_again();
    let writes = loop {
        match b.call(settle(true)).await {
            Ok(Answer::Settled { writes }) => break writes,
            // It has yet to notice that the source is gone.
            other => assert!(other.is_err(), "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(writes > 0);
    until(&mut b, |s| s.fences == 0).await;
    assert_eq!(b.verify_settled().await, "OK");
}

async fn a_guest_is_not_booted_on_a_disk_in_use(kind: MachineKind) {
    let lab = Lab::new();
    let disk = file(&lab);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, disk.clone())).await;
    let second = Request::Boot(Box::new(guest(kind, disk)));
    let why = b.call(second.clone()).await.unwrap_err().to_string();
    assert!(why.contains("in use by another machine"), "{why}");
    Move::new(&a, &b).complete(&mut a, &mut b).await;
    let why = a.call(second.clone()).await.unwrap_err().to_string();
    assert!(why.contains("runs on another host"), "{why}");
    // Perhaps it is the heir's still: in any case it is somebody's.
    let mut c = lab.host("c").await;
    let why = c.call(second).await.unwrap_err().to_string();
    assert!(why.contains("disk.img") && why.contains("machine"), "{why}");
    b.runs_unharmed().await;
}

async fn disk_that_cannot_be_opened_there(kind: MachineKind) {
    let lab = Lab::new();
    let disk = file(&lab);
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(guest(kind, disk)).await;
    // As if the other host did not have it.
    std::fs::rename(lab.path("disk.img"), lab.path("elsewhere.img")).unwrap();
    Move::new(&a, &b).begin(&mut a, &mut b).await;
    let why = a.stays(ReportOutcome::Failed).await;
    assert!(
        why.contains("disk.img") && why.contains("does not exist"),
        "{why}"
    );
    a.runs_unharmed().await;
    std::fs::rename(lab.path("elsewhere.img"), lab.path("disk.img")).unwrap();
    let mut c = lab.host("c").await;
    Move::new(&a, &c).complete(&mut a, &mut c).await;
    assert_eq!(c.verify_settled().await, "OK");
}
