//! Requests and their answers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::driver::*;
use super::*;
use vmferry_block::Geometry;
use vmferry_guest::abi::DISK_MMIO_BASE;

#[test]
fn what_is_written_is_read_again_and_lengths_are_exact() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let driver = &mut host.driver;
    driver.write_block(0, 3, 7);
    assert_eq!(driver.answer_to(0), (0, 1));
    assert_eq!(disk.content(3 * 4096, 4096), [7; 4096]);
    driver.request(1, IN, 3 * 8, 4096);
    assert_eq!(driver.answer_to(1), (0, 4097));
    assert_eq!(driver.read::<4096>(Driver::data(1)), [7; 4096]);
    driver.request(2, FLUSH, 0, 0);
    assert_eq!(driver.answer_to(2), (0, 1));
    driver.request(3, GET_ID, 0, 20);
    assert_eq!(driver.answer_to(3), (0, 21));
    assert_eq!(
        driver.read(Driver::data(3)),
        *b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    let clear = |driver: &mut Driver, slot, kind, sector: u64, flags: u32| {
        driver.write(Driver::data(slot), &sector.to_le_bytes());
        driver.write(Driver::data(slot) + 8, &4u32.to_le_bytes());
        driver.write(Driver::data(slot) + 12, &flags.to_le_bytes());
        driver.request(slot, kind, 0, 16);
        driver.answer_to(slot)
    };
    assert_eq!(clear(driver, 4, DISCARD, 24, 0), (0, 1));
    assert_eq!(clear(driver, 5, ZEROES, 28, 1), (0, 1));
    assert_eq!(disk.content(3 * 4096, 4096), [0; 4096]);
    assert_eq!(
        clear(driver, 6, DISCARD, 24, 1),
        (2, 1),
        "a flag it has not"
    );
    assert_eq!(clear(driver, 7, ZEROES, 24, 2), (2, 1));
    assert_eq!(clear(driver, 8, ZEROES, 2045, 0), (1, 1), "beyond the end");
    let stats = host.disks.stats();
    assert_eq!((stats.requests, stats.errors, stats.in_flight), (9, 3, 0));
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let driver = &mut host.driver;
    for (slot, (kind, sector, len, status)) in (0..).zip([
        (IN, 2048, 512, 1),
        (IN, 2047, 1024, 1),
        (OUT, u64::MAX, 512, 1),
        (OUT, u64::MAX / 512 + 1, 512, 1),
        (IN, 0, 511, 1),
        (IN, 0, 0, 1),
        (DISCARD, 0, 15, 1),
        (99, 0, 0, 2),
    ]) {
        driver.request(slot, kind, sector, len);
        assert_eq!(driver.answer_to(slot), (status, 1), "{kind} {sector} {len}");
    }
    disk.fail(Some(libc::ENOSPC));
    driver.write_block(8, 0, 1);
    assert_eq!(driver.answer_to(8), (1, 1));
    disk.fail(Some(libc::EOPNOTSUPP));
    driver.request(9, IN, 0, 512);
    assert_eq!(driver.answer_to(9), (2, 1));
    disk.fail(None);
    // Data outside RAM.
    let head = driver.prepare(10, IN, 0, 512);
    driver.describe(head + 1, (RAM - 1, 512, NEXT | WRITE, head + 2));
    driver.offer(head);
    driver.notify();
    assert_eq!(driver.answer_to(10), (1, 1));
    assert_eq!(driver.get(0x70), 15, "and it goes on");
    driver.write_block(11, 0, 9);
    assert_eq!(driver.answer_to(11), (0, 1));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = MemoryDisk::with(Geometry {
        read_only: true,
        ..MemoryDisk::new(1 << 20).geometry()
    });
    let mut host = Host::started(&disk);
    host.driver.write_block(0, 0, 1);
    assert_eq!(host.driver.answer_to(0), (1, 1));
    host.driver.request(1, ZEROES, 0, 16);
    assert_eq!(host.driver.answer_to(1), (2, 1));
    assert_eq!(disk.content(0, 512), [0; 512]);
}

#[test]
fn any_layout_of_a_request_is_understood() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let driver = &mut host.driver;
    let (at, data) = (Driver::header(0), Driver::data(0));
    driver.prepare(0, OUT, 8, 512);
    driver.write(data, &[5; 512]);
    // An indirect table: the header in two, an empty piece, data in two, the status.
    let table = at + 0x800;
    for (i, (from, len, flags)) in (0..).zip([
        (at, 7, NEXT),
        (at + 7, 9, NEXT),
        (RAM, 0, NEXT),
        (data, 100, NEXT),
        (data + 100, 412, NEXT),
        (at + 16, 1, WRITE),
    ]) {
        driver.describe_in(table, i, (from, len, flags, i + 1));
    }
    driver.describe(0, (table, 6 * 16, INDIRECT, 0));
    driver.offer(0);
    driver.notify();
    assert_eq!(driver.answer_to(0), (0, 1));
    assert_eq!(disk.content(4096, 512), [5; 512]);
    // Data and status in one.
    driver.prepare(1, IN, 8, 512);
    driver.describe(3, (Driver::header(1), 16, NEXT, 4));
    driver.describe(4, (Driver::data(1), 513, WRITE, 0));
    driver.offer(3);
    driver.notify();
    assert_eq!(driver.answer(), (3, 513));
    assert_eq!(driver.read::<513>(Driver::data(1)), {
        let mut all = [5; 513];
        all[512] = 0;
        all
    });
}

#[test]
fn the_guest_is_interrupted_and_acknowledges() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let driver = &mut host.driver;
    driver.request(0, FLUSH, 0, 0);
    assert_eq!(driver.answer_to(0), (0, 1));
    // Whoever asks for anything is answered after the interrupt.
    assert!(!host.disks.is_held());
    assert_eq!(driver.get(0x60), 1);
    driver.set(0x64, 1);
    assert_eq!(driver.get(0x60), 0);
}

#[test]
fn with_event_indices_nobody_is_told_without_asking() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::with(&disk, spec(), Role::Owner);
    let driver = &mut host.driver;
    driver.start_with(VERSION_1 | EVENT_IDX);
    let used_event = AVAIL + 4 + u64::from(SIZE) * 2;
    let avail_event = USED + 4 + u64::from(SIZE) * 8;
    // Tell of the second answer.
    driver.write(used_event, &1u16.to_le_bytes());
    let interrupted = [0, 1];
    for (slot, expected) in (0..).zip(interrupted) {
        driver.request(slot, FLUSH, 0, 0);
        assert_eq!(driver.answer_to(slot), (0, 1));
        assert!(!host.disks.is_held());
        assert_eq!(driver.get(0x60), expected);
        assert_eq!(driver.u16_at(avail_event), slot + 1);
    }
}

#[test]
fn every_queue_works() {
    let disk = MemoryDisk::new(1 << 20);
    let two = DiskSpec {
        queues: 2,
        ..spec()
    };
    let mut host = Host::with(&disk, two, Role::Owner);
    let driver = &mut host.driver;
    driver.set(0x70, 11);
    driver.set(0x24, 1);
    driver.set(0x20, 1);
    driver.set(0x70, 11);
    driver.set(0x30, 2);
    assert_eq!(driver.get(0x34), 0, "there is no third queue");
    driver.set(0x30, 1);
    assert_eq!(driver.get(0x34), 256);
    for (register, value) in [
        (0x38, u64::from(SIZE)),
        (0x80, TABLE),
        (0x90, AVAIL),
        (0xa0, USED),
    ] {
        driver.set(register, value as u32);
    }
    driver.set(0x44, 1);
    driver.set(0x70, 15);
    driver.write_block(0, 0, 3);
    assert_eq!(driver.answer_to(0), (0, 1));
}

#[test]
fn what_is_nobodys_reads_as_ones() {
    let host = Host::started(&MemoryDisk::new(1 << 20));
    let mut data = [0; 8];
    for at in [0, 0xcfff_fff8, 0xd000_1000, u64::MAX] {
        host.disks.mmio_read(at, &mut data);
        host.disks.mmio_write(at, &data);
        assert_eq!(data, [0xff; 8]);
    }
}

#[test]
fn a_request_that_comes_while_an_empty_queue_is_looked_at_breaks_nothing() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    let (disks, over) = (host.disks.clone(), AtomicBool::new(false));
    let answered = std::thread::scope(|scope| {
        // As by another vCPU, whose requests were taken already.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                disks.mmio_write(DISK_MMIO_BASE + 0x50, &[0; 4]);
            }
        });
        let driver = &mut host.driver;
        let answered = (0..20_000).take_while(|_| {
            driver.write_block(0, 3, 7);
            until("an answer", || {
                driver.has_answer() || driver.get(0x70) != 15
            });
            driver.has_answer() && driver.answer_to(0) == (0, 1)
        });
        let answered = answered.count();
        over.store(true, Ordering::Relaxed);
        answered
    });
    assert_eq!(answered, 20_000);
}
