//! Jobs in flight when a machine moves: held, handed over, adopted, reissued, settled; or taken
//! back.

use std::time::Duration as Time;

use vmferry_block::{Extent, Fate, JobEnd, JobKind, JobRecord, Settlement};

use super::driver::*;
use super::*;

fn settlement(job: u64, end: JobEnd) -> Settlement {
    Settlement { key: key(job), end }
}

/// A source with a write of ones to block 1 in flight that cannot be taken back, held.
fn unsettled() -> (MemoryDisk, Host) {
    let (disk, source) = stalled(true);
    let held = source.disks.hold();
    assert_eq!((held.in_flight, held.completed), (1, 0));
    assert_eq!((held.cancelled, held.unsettled), (0, 1));
    assert_eq!(held.jobs.len(), 1);
    disk.stall(false);
    (disk, source)
}

#[test]
fn what_can_be_taken_back_is_reissued_at_once_with_what_was_not_even_taken() {
    let disk = MemoryDisk::new(1 << 20);
    let mut source = Host::started(&disk);
    disk.stall(true);
    source.driver.write_block(0, 1, 7);
    source.driver.request(1, IN, 0, 4096);
    source.driver.request(2, FLUSH, 0, 0);
    let _ = disk.wait_stalled(3);
    let held = source.disks.hold();
    assert_eq!((held.in_flight, held.cancelled, held.unsettled), (3, 3, 0));
    assert!(disk.stalled().is_empty());
    disk.stall(false);
    // Not notified of before the move, and not taken after the hold.
    source.driver.write_block(3, 2, 8);
    assert!(source.disks.is_held());
    assert_eq!(source.driver.answered(), 0);

    let mut heir = source.moved(&disk);
    assert_eq!(heir.disks.adopted(), held.jobs);
    assert_eq!(heir.driver.answered(), 0);
    assert_eq!(disk.is_open(1), (true, false));
    heir.disks.release();
    let mut answers: Vec<(u32, u32)> = (0..4).map(|_| heir.driver.answer()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(0, 1), (3, 4097), (6, 1), (9, 1)]);
    let mut completed: Vec<IoEvent> = (0..3).map(|_| heir.event()).collect();
    completed.sort_by_key(|e| format!("{e:?}"));
    assert_eq!(completed, [0, 1, 2].map(|job| IoEvent::Completed(key(job))));
    assert_eq!(disk.content(4096, 8192), [[7; 4096], [8; 4096]].concat());
    assert_eq!(heir.disks.stats().reissued, 3);
    assert_eq!(disk.is_open(1), (true, true));
    assert_eq!(source.driver.answered(), 0);
}

#[test]
fn a_write_that_lands_late_does_not_undo_a_newer_one() {
    let (disk, source) = unsettled();
    let mut heir = source.moved(&disk);
    heir.disks.release();
    // The guest goes on: what overlaps waits behind the first, everything else does not.
    heir.driver.write_block(1, 1, 2);
    heir.driver.write_block(2, 2, 3);
    assert_eq!(heir.driver.answer_to(2), (0, 1));
    heir.driver.request(3, IN, 8, 512);
    heir.driver.request(4, FLUSH, 0, 0);
    assert_eq!(heir.driver.answer_to(4), (0, 1));
    let stats = heir.disks.stats();
    assert_eq!((stats.kept_back, stats.fences, stats.in_flight), (3, 1, 0));
    assert!(
        heir.disks
            .may_move()
            .unwrap_err()
            .contains("disk 0 (file:twin)")
    );

    assert!(disk.release(0, JobId(0), None), "it lands late");
    let settled = settlement(0, JobEnd::Done);
    assert_eq!(source.event(), IoEvent::Settled(settled));
    assert_eq!(source.driver.answered(), 0, "not told to the guest there");
    let landed_before = disk.wait_landed(3).len();
    heir.disks.settle(&[settled]);
    // Done: told to the guest, and not done again.
    assert_eq!(heir.driver.answer_to(0), (0, 1));
    assert_eq!(heir.event(), IoEvent::Completed(key(0)));
    assert_eq!(heir.driver.answer_to(1), (0, 1));
    assert_eq!(heir.driver.answer_to(3), (0, 513));
    assert_eq!(heir.driver.read(Driver::data(3)), [2; 512]);
    assert_eq!(disk.content(4096, 4096), [2; 4096]);
    assert_eq!(disk.wait_landed(landed_before + 2).len(), 5);
    let stats = heir.disks.stats();
    assert_eq!((stats.fences, stats.kept_back, stats.reissued), (0, 0, 0));
    assert!(stats.fence_wait > Time::ZERO);
    assert_eq!(stats.fence_wait, stats.longest_fence_wait);
    assert_eq!(heir.disks.may_move(), Ok(()));
}

#[test]
fn a_write_that_never_landed_is_issued_again() {
    for end in [JobEnd::Cancelled, JobEnd::Unknown] {
        let (disk, source) = unsettled();
        let mut heir = source.moved(&disk);
        heir.disks.release();
        heir.disks
            .settle(&[settlement(0, end), settlement(0, end), settlement(9, end)]);
        assert_eq!(heir.driver.answer_to(0), (0, 1));
        assert_eq!(disk.content(4096, 4096), [1; 4096]);
        assert_eq!(heir.disks.stats().reissued, 1);
    }
}

#[test]
fn a_settlement_before_the_release_waits_for_it() {
    let (disk, source) = unsettled();
    let mut heir = source.moved(&disk);
    heir.disks
        .settle(&[settlement(0, JobEnd::Failed(libc::EIO))]);
    assert!(heir.disks.is_held());
    assert_eq!(heir.driver.answered(), 0);
    heir.disks.release();
    assert_eq!(heir.driver.answer_to(0), (1, 1));
    assert_eq!(heir.event(), IoEvent::Completed(key(0)));
}

#[test]
fn storage_that_knows_the_former_owner_gone_lifts_all_fences() {
    let (disk, source) = unsettled();
    let mut heir = source.moved(&disk);
    heir.disks.release();
    assert_eq!(heir.disks.stats().fences, 1);
    disk.end_session(0);
    disk.set_former_owner_gone(true);
    assert_eq!(heir.driver.answer_to(0), (0, 1));
    assert_eq!(heir.event(), IoEvent::Completed(key(0)));
    assert_eq!(disk.content(4096, 4096), [1; 4096]);
    let lost = IoEvent::Settled(settlement(0, JobEnd::Unknown));
    assert_eq!(source.event(), lost);
}

#[test]
fn a_session_that_ends_in_the_hold_leaves_nothing_unsettled() {
    let (disk, source) = stalled(true);
    let _ = source.disks.hold();
    disk.end_session(0);
    assert_eq!(
        source.event(),
        IoEvent::Settled(settlement(0, JobEnd::Unknown))
    );
    // Handed over once more, it is known that it does no harm.
    let held = source.disks.hold();
    assert_eq!((held.cancelled, held.unsettled), (1, 0));
}

#[test]
fn a_source_that_is_released_takes_everything_back() {
    let (disk, mut source) = stalled(true);
    source.driver.write_block(1, 2, 2);
    source.driver.write_block(2, 3, 3);
    let _ = disk.wait_stalled(3);
    let held = source.disks.hold();
    assert_eq!((held.in_flight, held.unsettled), (3, 3));
    disk.release(0, JobId(1), None);
    assert_eq!(
        source.event(),
        IoEvent::Settled(settlement(1, JobEnd::Done))
    );
    disk.release(0, JobId(2), Some(libc::EIO));
    let failed = settlement(2, JobEnd::Failed(libc::EIO));
    assert_eq!(source.event(), IoEvent::Settled(failed));
    assert_eq!(source.driver.answered(), 0);
    disk.stall(false);
    source.driver.write_block(3, 4, 4);
    source.disks.release();
    source.disks.release();
    let mut answers: Vec<(u32, u32)> = (0..3).map(|_| source.driver.answer()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(3, 1), (6, 1), (9, 1)]);
    let [failed] = source.driver.read(Driver::header(2) + 16);
    assert_eq!(failed, 1);
    disk.release(0, JobId(0), None);
    assert_eq!(source.driver.answer_to(0), (0, 1));
    assert_eq!(disk.content(4096, 4096), [1; 4096]);
    assert_eq!(disk.content(4 * 4096, 4096), [4; 4096]);
}

#[test]
fn what_was_cancelled_is_issued_again_at_a_source_that_is_released() {
    let (disk, mut source) = stalled(false);
    assert_eq!(source.disks.hold().cancelled, 1);
    disk.stall(false);
    source.disks.release();
    assert_eq!(source.driver.answer_to(0), (0, 1));
    assert_eq!(source.disks.stats().reissued, 1);
}

#[test]
fn a_fence_from_the_journal_keeps_back_what_overlaps() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let record = |job, fate| JobRecord {
        key: key(job),
        kind: JobKind::Write,
        extent: Extent::new(4096, 4096),
        fate,
    };
    host.disks.fence(record(40, Fate::Cancelled));
    host.disks.fence(record(41, Fate::Unsettled));
    host.driver.write_block(0, 1, 1);
    host.driver.write_block(1, 2, 2);
    assert_eq!(host.driver.answer_to(1), (0, 1));
    assert_eq!(host.disks.stats().kept_back, 1);
    host.disks.settle(&[settlement(41, JobEnd::Done)]);
    assert_eq!(host.driver.answer_to(0), (0, 1));
    assert_eq!(host.event(), IoEvent::Completed(key(41)));
}

#[test]
fn a_machine_that_is_gone_keeps_its_storage_until_that_is_done() {
    let (disk, source) = unsettled();
    source.disks.retire();
    source.disks.retire();
    assert_eq!(disk.is_open(0), (true, false));
    assert!(source.disks.save().is_err());
    let Host { events, .. } = source;
    disk.release(0, JobId(0), None);
    let settled = crate::lock(&events).recv_timeout(LONG);
    assert_eq!(settled, Ok(IoEvent::Settled(settlement(0, JobEnd::Done))));
    disk.wait_closed(0);
}

#[test]
fn what_storage_is_asked_for_by_a_machine_that_is_dropped_is_taken_back() {
    let (disk, host) = stalled(false);
    drop(host);
    assert_eq!(disk.is_open(0), (false, false));
    assert!(disk.stalled().is_empty());
    assert_eq!(disk.content(4096, 4096), [0; 4096]);
}

#[test]
fn storage_that_cannot_move_says_so_by_the_disks_name() {
    let disk = MemoryDisk::new(1 << 20);
    let host = Host::started(&disk);
    disk.set_stays(Some("it is on this host only"));
    let why = host.disks.may_move().unwrap_err();
    assert_eq!(why, "disk 0 (file:twin): it is on this host only");
}
