//! Guests that break their queues.

use proptest::prelude::*;

use super::driver::*;
use super::*;

const NEEDS_RESET: u32 = 64;

type Break = fn(&mut Driver);

/// The device stands still, says so, interrupts for it, and works once it is reset.
fn assert_broken_until_reset(host: &mut Host) {
    let driver = &mut host.driver;
    until("it is broken", || driver.get(0x70) == 15 | NEEDS_RESET);
    // The worker tells of it before it does anything else.
    assert!(!host.disks.is_held());
    assert_eq!(driver.get(0x60) & 2, 2);
    driver.write_block(5, 1, 1);
    assert_eq!(driver.answered(), 0);
    driver.start();
    assert_eq!((driver.get(0x70), driver.get(0x60)), (15, 0));
    driver.write_block(6, 1, 6);
    assert_eq!(driver.answer_to(6), (0, 1));
}

#[test]
fn a_broken_queue_stops_the_disk_until_it_is_reset() {
    let breaks: [(&str, Break); 9] = [
        ("a loop", |d| {
            let head = d.prepare(0, OUT, 0, 512);
            d.describe(head + 1, (Driver::data(0), 512, NEXT, head));
            d.offer(head);
        }),
        ("a head beyond the table", |d| d.offer(SIZE)),
        ("a next beyond the table", |d| {
            let head = d.prepare(0, OUT, 0, 512);
            d.describe(head, (Driver::header(0), 16, NEXT, SIZE));
            d.offer(head);
        }),
        ("no status byte", |d| {
            let head = d.prepare(0, OUT, 0, 512);
            d.describe(head + 1, (Driver::data(0), 512, 0, 0));
            d.offer(head);
        }),
        ("a status byte outside RAM", |d| {
            let head = d.prepare(0, OUT, 0, 512);
            d.describe(head + 2, (RAM, 1, WRITE, 0));
            d.offer(head);
        }),
        ("read after written", |d| {
            let head = d.prepare(0, IN, 0, 512);
            d.describe(head + 2, (Driver::header(0) + 16, 1, 0, 0));
            d.offer(head);
        }),
        ("an indirect table outside RAM", |d| {
            d.describe(0, (RAM - 16, 64, INDIRECT, 0));
            d.offer(0);
        }),
        ("an indirect table in an indirect table", |d| {
            let table = Driver::header(0);
            d.describe_in(table, 0, (table, 16, INDIRECT, 0));
            d.describe(0, (table, 16, INDIRECT, 0));
            d.offer(0);
        }),
        ("more requests than entries", |d| {
            d.write(AVAIL + 2, &(SIZE + 1).to_le_bytes());
        }),
    ];
    for (what, broken) in breaks {
        println!("{what}");
        let disk = MemoryDisk::new(1 << 20);
        let mut host = Host::started(&disk);
        broken(&mut host.driver);
        host.driver.notify();
        assert_broken_until_reset(&mut host);
    }
}

#[test]
fn a_request_that_is_made_twice_breaks_the_queue() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    disk.stall(true);
    let head = host.driver.prepare(0, OUT, 0, 512);
    host.driver.offer(head);
    host.driver.offer(head);
    host.driver.notify();
    disk.stall(false);
    assert_broken_until_reset(&mut host);
}

#[test]
fn queues_that_cannot_be_are_not_started() {
    for (register, value) in [
        (0x38, 3),
        (0x38, 0),
        (0x38, 512),
        (0x80, 8),
        (0x84, 1),
        (0x90, RAM as u32),
        (0x90, 0),
        (0xa4, u32::MAX),
    ] {
        let mut host = Host::with(&MemoryDisk::new(1 << 20), spec(), Role::Owner);
        host.driver.start();
        host.driver.set(0x70, 0);
        host.driver.set(0x70, 3);
        host.driver.set(0x24, 1);
        host.driver.set(0x20, 1);
        host.driver.set(0x70, 11);
        for (register, value) in [(0x38, 64), (0x80, TABLE), (0x90, AVAIL), (0xa0, USED)] {
            host.driver.set(register, value as u32);
        }
        host.driver.set(register, value);
        host.driver.set(0x44, 1);
        host.driver.set(0x70, 15);
        assert_broken_until_reset(&mut host);
    }
}

#[test]
fn a_reset_leaves_jobs_behind_that_nobody_is_told_of() {
    let (disk, mut host) = stalled(true);
    host.driver.set(0x70, 0);
    assert_eq!(host.driver.get(0x70), NEEDS_RESET, "not done yet");
    host.driver.start();
    host.driver.write_block(0, 2, 2);
    let _ = disk.wait_stalled(2);
    disk.release(0, JobId(0), None);
    disk.release(0, JobId(1), None);
    assert_eq!(host.driver.answer_to(0), (0, 1));
    assert_eq!(host.driver.answered(), 1);
    host.driver.set(0x70, 0);
    assert_eq!(host.driver.get(0x70), 0);
}

#[test]
fn resets_do_not_pile_up_jobs_without_end() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    disk.stall(true);
    disk.refuse_cancel(true);
    let most = worker::MAX_DISK_JOBS;
    for round in 1.. {
        for slot in 0..20 {
            host.driver.write_block(slot, u64::from(slot), 1);
        }
        let _ = disk.wait_stalled(most.min(round * 20));
        if round * 20 > most {
            break;
        }
        host.driver.start();
    }
    // Those that were left in the queue are taken once there is room.
    disk.release_all();
    let mut heads: Vec<u32> = (0..20).map(|_| host.driver.answer().0).collect();
    heads.sort_unstable();
    assert!(heads.into_iter().eq((0..20).map(|slot| slot * 3)));
}

#[test]
fn jobs_left_behind_are_handed_over_and_not_issued_again() {
    let (disk, mut host) = stalled(true);
    host.driver.start();
    let held = host.disks.hold();
    assert_eq!(held.unsettled, 1);
    let mut heir = host.moved(&disk);
    heir.disks.release();
    disk.stall(false);
    heir.driver.write_block(1, 1, 2);
    until("both are kept back", || heir.disks.stats().kept_back == 2);
    let end = vmferry_block::JobEnd::Unknown;
    heir.disks
        .settle(&[vmferry_block::Settlement { key: key(0), end }]);
    assert_eq!(heir.event(), IoEvent::Completed(key(0)));
    assert_eq!(heir.driver.answer_to(1), (0, 1));
    assert_eq!(heir.driver.answered(), 1);
    assert_eq!(disk.content(4096, 4096), [2; 4096]);
}

#[test]
fn a_guest_that_never_stops_does_not_keep_the_worker() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    for slot in 0..16 {
        let head = host.driver.prepare(slot, GET_ID, 0, 20);
        host.driver.offer(head);
    }
    // The ring is full of requests all the time: whatever was answered is made again.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let driver = &mut host.driver;
        scope.spawn(|| {
            driver.notify();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (head, _) = driver.answer();
                driver.offer(head as u16);
                driver.notify();
            }
        });
        for _ in 0..100 {
            assert!(!host.disks.is_held());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is in rings and registers, the worker is there and the guest can have its device
    /// back.
    #[test]
    fn garbage_breaks_nothing_but_the_device(
        descriptors in prop::collection::vec((0..RAM + 64, 0..2048u32, 0..8u16, 0..SIZE + 2), 16),
        heads in prop::collection::vec(0..18u16, 1..8),
        writes in prop::collection::vec((0..64u64, any::<u32>()), 0..8),
    ) {
        let disk = MemoryDisk::new(1 << 20);
        let mut host = Host::started(&disk);
        for (index, d) in (0..).zip(&descriptors) {
            // Most of them near, so that headers are read where something is.
            let at = if d.1 % 2 == 0 { d.0 } else { Driver::header(0) };
            host.driver.describe(index, (at, d.1, d.2, d.3));
        }
        host.driver.write(Driver::header(0), &[0; 16]);
        for head in heads {
            host.driver.offer(head);
        }
        host.driver.notify();
        for (register, value) in writes {
            host.driver.set(register * 4, value);
        }
        prop_assert!(!host.disks.is_held());
        let _ = host.disks.hold();
        prop_assert!(host.disks.save().is_ok());
        host.disks.release();
        host.driver.start();
        host.driver.write_block(20, 1, 1);
        prop_assert_eq!(host.driver.answer_to(20), (0, 1));
    }
}
