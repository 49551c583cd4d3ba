//! Disks that are full: a record that cannot be written, each of them, on each side.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use vmferry_journal::{Journal, MemoryJournal, SledJournal};
use vmferry_protocol::ownership::Record;
use vmferry_tests::engine::{FaultyJournal, Guest, Leaks, Plan, begin, run, settle};

fn on_disk() -> (tempfile::TempDir, Arc<dyn Journal>) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(SledJournal::open(dir.path()).unwrap());
    (dir, journal)
}

async fn clean(guest: Guest) -> Guest {
    let ended = begin(&guest, &Plan::default()).await.end().await;
    assert!(ended.completed(), "{}", ended.why_source());
    settle(guest, ended).await
}

#[test]
fn a_record_of_the_source_that_cannot_be_written() {
    run(async {
        let mut guest = clean(Guest::small().await).await;
        let (_dir, disk) = on_disk();
        let leaks = Leaks::count();
        for failing in 1..=2 {
            let journal = FaultyJournal::new(disk.clone(), move |nth, _| nth == failing);
            let there = Arc::new(MemoryJournal::default());
            let plan = Plan {
                journals: [journal.clone(), there.clone()],
                ..Plan::default()
            };
            let under = begin(&guest, &plan).await;
            let id = under.migration;
            let ended = under.end().await;
            assert_eq!(journal.appends(), failing.max(1));
            if failing == 1 {
                // `relinquished`: the guest stays, and the destination takes `prepared` back.
                assert!(!ended.completed());
                assert!(
                    ended.why_source().contains("the disk is full"),
                    "{}",
                    ended.why_source()
                );
                let why = ended.why_destination();
                assert!(why.contains("the disk is full"), "{why}");
                let records = there.records().unwrap();
                assert_eq!(records, [Record::Prepared(id), Record::Discarded(id)]);
            } else {
                // `released`: the guest is there all the same.
                assert!(ended.completed());
            }
            guest = settle(guest, ended).await;
            leaks.none().await;
        }
        clean(guest).await;
    });
}

#[test]
fn a_record_of_the_destination_that_cannot_be_written() {
    run(async {
        let mut guest = clean(Guest::small().await).await;
        let (_dir, disk) = on_disk();
        let leaks = Leaks::count();
        for failing in 1..=2 {
            let journal = FaultyJournal::new(disk.clone(), move |nth, _| nth == failing);
            let here: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
            let plan = Plan {
                journals: [here.clone(), journal.clone()],
                ..Plan::default()
            };
            let ended = begin(&guest, &plan).await.end().await;
            if failing == 1 {
                // `prepared`: nothing was given up yet.
                assert!(!ended.completed());
                let why = ended.why_source();
                assert!(
                    why.contains("WritingPrepared") && why.contains("disk is full"),
                    "{why}"
                );
                assert!(ended.why_destination().contains("disk is full"));
                // Taken back there: it may have reached the disk after all.
                assert_eq!(journal.appends(), 2);
            } else {
                // `owner`: nobody else can run the guest, so it is tried again.
                assert!(ended.completed(), "{}", ended.why_source());
                assert_eq!(journal.appends(), 3);
            }
            guest = settle(guest, ended).await;
            assert_eq!(here.records().unwrap(), []);
            leaks.none().await;
        }
        clean(guest).await;
    });
}

#[test]
fn both_disks_fail() {
    run(async {
        let guest = clean(Guest::small().await).await;
        let memory = || Arc::new(MemoryJournal::default());
        let plan = Plan {
            journals: [
                FaultyJournal::new(memory(), |_, _| true),
                // Not even the taking back of `prepared` can be written.
                FaultyJournal::new(memory(), |_, r| matches!(r, Record::Discarded(_))),
            ],
            ..Plan::default()
        };
        let ended = begin(&guest, &plan).await.end().await;
        assert!(!ended.completed());
        let guest = settle(guest, ended).await;
        clean(guest).await;
    });
}
