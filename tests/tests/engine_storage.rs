//! Storage jobs in flight at the switchover: handed over, fenced, settled, reissued, taken back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmferry_block::MemoryDisk;
use vmferry_block::memory::Stalled;
use vmferry_engine::source::SourceEnd;
use vmferry_machine::DiskStats;
use vmferry_protocol::source::Outcome;
use vmferry_tests::engine::{
    FaultyMachine, Guest, Op, Plan, Script, Step, Under, Way, begin, guard, run, settle, try_begin,
};

const DISK: u64 = 1 << 20;
/// Requests in flight; half of them may be writes.
const DEPTH: usize = 8;
const WORK: &str = "disk-depth=8 disk-mib=1 disk-write=50 disk-flush=0";

/// A guest whose whole queue is stalled, the disk, and the writes among what is stalled. What is
/// issued from here on is not stalled.
async fn stalled(work: &str) -> (Guest, MemoryDisk, usize) {
    let disk = MemoryDisk::new(DISK);
    let guest = Guest::on_disk(&disk, work).await;
    loop {
        disk.stall(true);
        let waiting = disk.clone();
        let stalled = tokio::task::spawn_blocking(move || waiting.wait_stalled(DEPTH));
        let stalled = guard("a queue full of stalled requests", stalled)
            .await
            .unwrap();
        disk.stall(false);
        let writes = writes(&stalled).count();
        if writes > 0 {
            return (guest, disk, writes);
        }
        // Once in 2^8 times the guest has drawn reads only.
        disk.release_all();
    }
}

fn writes(stalled: &[Stalled]) -> impl Iterator<Item = &Stalled> {
    stalled.iter().filter(|s| s.kind.changes_disk())
}

fn plan(disk: &MemoryDisk) -> Plan {
    Plan {
        disk: Some(disk.clone()),
        ..Plan::default()
    }
}

/// Waits until the disks of a guest are as wanted. Nobody tells when they are.
async fn until(guest: &Guest, what: &str, wanted: impl Fn(&DiskStats) -> bool) -> DiskStats {
    guard(what, async {
        loop {
            let stats = guest.machine.disks().stats();
            if wanted(&stats) {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// The end of a migration whose guest was taken out by [`Under::arrive`].
async fn end_of(under: Under) -> SourceEnd {
    let ended = under.end().await;
    assert!(ended.completed(), "{}", ended.why_source());
    assert_eq!(ended.destination.failure, None);
    ended.source
}

#[test]
fn the_guest_runs_at_the_destination_before_the_storage_has_ended_its_writes() {
    run(async {
        let (guest, disk, writes) = stalled(WORK).await;
        disk.refuse_cancel(true);
        let mut under = begin(&guest, &plan(&disk)).await;
        let mut there = under.arrive().await;
        assert!(
            under.source.ended.try_recv().is_err(),
            "it waits for its storage"
        );
        // Reads are issued again; writes are waited for, and the guest goes on beside them.
        let stats = until(&there, "progress beside the fences", |s| s.requests > 100).await;
        assert_eq!(stats.fences, writes as u64);
        assert_eq!(stats.reissued, (DEPTH - writes) as u64);
        there.verify().await;
        disk.release_all();
        let end = end_of(under).await;
        let io = end.report.io.unwrap();
        assert_eq!(io.in_flight_at_pause, DEPTH as u64);
        assert_eq!(
            (io.unsettled, io.cancelled),
            (writes as u64, (DEPTH - writes) as u64)
        );
        there.verify_settled().await;
        let stats = there.machine.disks().stats();
        // They were done: none of them is done twice.
        assert_eq!((stats.fences, stats.reissued), (0, (DEPTH - writes) as u64));
    });
}

#[test]
fn a_machine_without_disks_has_nothing_to_report_of_them() {
    run(async {
        let guest = Guest::small().await;
        let ended = begin(&guest, &Plan::default()).await.end().await;
        assert_eq!(ended.source.report.io, None);
        settle(guest, ended).await;
    });
}

#[test]
fn what_can_be_cancelled_is_reissued_at_once() {
    run(async {
        let (guest, disk, _) = stalled(WORK).await;
        let ended = begin(&guest, &plan(&disk)).await.end().await;
        let io = ended.source.report.io.clone().unwrap();
        assert_eq!((io.unsettled, io.cancelled), (0, DEPTH as u64));
        let mut guest = settle(guest, ended).await;
        guest.verify_settled().await;
        assert_eq!(guest.machine.disks().stats().reissued, DEPTH as u64);
    });
}

#[test]
fn writes_over_an_unsettled_one_wait_for_it() {
    run(async {
        let work = format!("{WORK} disk-overlap=60");
        let (guest, disk, writes) = stalled(&work).await;
        disk.refuse_cancel(true);
        let mut under = begin(&guest, &plan(&disk)).await;
        let mut there = under.arrive().await;
        // The adopted ones, and one over them.
        until(&there, "a request over a fence", |s| {
            s.kept_back > writes as u64
        })
        .await;
        there.verify().await;
        // Had it been issued before, the old write would land on it now.
        disk.release_all();
        end_of(under).await;
        there.verify_settled().await;
    });
}

#[test]
fn a_session_that_the_storage_has_closed_settles_what_was_in_it() {
    run(async {
        let (guest, disk, writes) = stalled(WORK).await;
        disk.refuse_cancel(true);
        let mut under = begin(&guest, &plan(&disk)).await;
        let mut there = under.arrive().await;
        disk.end_session(0);
        end_of(under).await;
        there.verify_settled().await;
        let stats = there.machine.disks().stats();
        assert_eq!((stats.fences, stats.reissued), (0, DEPTH as u64));
        assert!(writes > 0);
    });
}

#[test]
fn storage_that_knows_the_former_owner_is_gone_lifts_the_fences() {
    run(async {
        let (guest, disk, _) = stalled(WORK).await;
        disk.refuse_cancel(true);
        let mut under = begin(&guest, &plan(&disk)).await;
        let mut there = under.arrive().await;
        disk.set_former_owner_gone(true);
        until(&there, "fences that are lifted", |s| s.fences == 0).await;
        there.verify_settled().await;
        // The source's own word comes late, and changes nothing any more.
        disk.end_session(0);
        end_of(under).await;
        there.verify_settled().await;
    });
}

#[test]
fn what_is_settled_is_told_again_on_the_next_connection() {
    for name in ["Settled", "SettledAck"] {
        run(async {
            let (guest, disk, _) = stalled(WORK).await;
            disk.refuse_cancel(true);
            let script = Script::new(move |said, _| {
                if said.name == name && said.of_kind == 1 {
                    Step::Cut
                } else {
                    Step::Pass
                }
            });
            let plan = Plan {
                script: script.clone(),
                ..plan(&disk)
            };
            let mut under = begin(&guest, &plan).await;
            let mut there = under.arrive().await;
            disk.release_all();
            end_of(under).await;
            assert!(script.connections() > 1 && script.has(Way::Out, "Rejoin"));
            there.verify_settled().await;
        });
    }
}

#[test]
fn a_switchover_that_fails_gives_the_jobs_back_to_the_source() {
    for refuse_cancel in [false, true] {
        run(async {
            let (guest, disk, _) = stalled(WORK).await;
            disk.refuse_cancel(refuse_cancel);
            let guest = guest.with(|machine| FaultyMachine::over(machine, Op::Save, 1));
            let ended = begin(&guest, &plan(&disk)).await.end().await;
            assert!(matches!(ended.source.outcome, Outcome::Aborted { .. }));
            let mut guest = settle(guest, ended).await;
            disk.release_all();
            guest.verify_settled().await;
            // And it can be moved still.
            let ended = begin(&guest, &plan(&disk)).await.end().await;
            assert!(ended.completed(), "{}", ended.why_source());
            settle(guest, ended).await.verify_settled().await;
        });
    }
}

#[test]
fn a_paused_guest_takes_its_jobs_along() {
    run(async {
        let (guest, disk, writes) = stalled(WORK).await;
        disk.refuse_cancel(true);
        guest.machine.pause().unwrap();
        let mut under = begin(&guest, &plan(&disk)).await;
        let mut there = under.arrive().await;
        let stats = there.machine.disks().stats();
        assert_eq!(stats.fences, writes as u64);
        disk.release_all();
        end_of(under).await;
        there.machine.resume().unwrap();
        there.verify_settled().await;
    });
}

#[test]
fn an_operator_settles_only_what_nobody_else_can() {
    run(async {
        let (guest, disk, writes) = stalled(WORK).await;
        disk.refuse_cancel(true);
        let gone = Arc::new(AtomicBool::new(false));
        let source_gone = gone.clone();
        let script = Script::new(move |_, _| match source_gone.load(Ordering::SeqCst) {
            true => Step::Cut,
            false => Step::Pass,
        });
        let plan = Plan {
            script,
            // A ping is soon on its way, and cut.
            silence: Duration::from_secs(1),
            ..plan(&disk)
        };
        let mut under = begin(&guest, &plan).await;
        let mut there = under.arrive().await;
        let operator = under.destination.operator();
        let connected = operator.settle_storage().await.unwrap_err();
        assert!(connected.contains("is connected"), "{connected}");
        let again = begin_refused(&there, &plan).await;
        assert!(again.contains("not settled"), "{again}");
        gone.store(true, Ordering::SeqCst);
        let settled = guard("the operator's turn", async {
            loop {
                match operator.settle_storage().await {
                    Ok(settled) => return settled,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        assert_eq!(settled.await, writes as u64);
        until(&there, "fences that are lifted", |s| s.fences == 0).await;
        there.verify_settled().await;
    });
}

#[test]
fn a_disk_that_cannot_follow_keeps_its_guest_here() {
    run(async {
        let disk = MemoryDisk::new(DISK);
        let mut guest = Guest::on_disk(&disk, WORK).await;
        disk.set_stays(Some("its cache is this host's"));
        let why = begin_refused(&guest, &plan(&disk)).await;
        assert!(why.contains("its cache is this host's"), "{why}");
        guest.verify_settled().await;
    });
}

/// Why a migration cannot begin.
async fn begin_refused(guest: &Guest, plan: &Plan) -> String {
    let begun = try_begin(guest, plan, async |_, _, _| {}).await;
    begun.expect_err("it may not begin")
}
