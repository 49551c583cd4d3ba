//! Saved state: what is taken, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::driver::*;
use super::*;

/// A source with a write and a read in flight, held.
fn source(disk: &MemoryDisk) -> Host {
    let mut source = Host::started(disk);
    disk.stall(true);
    source.driver.write_block(0, 1, 1);
    source.driver.request(1, IN, 0, 4096);
    let _ = disk.wait_stalled(2);
    assert_eq!(source.disks.hold().cancelled, 2);
    disk.stall(false);
    source
}

fn heir(disk: &MemoryDisk) -> Host {
    Host::with(disk, spec(), Role::Heir)
}

#[test]
fn only_disks_that_are_held_are_saved() {
    let disk = MemoryDisk::new(1 << 20);
    let host = Host::started(&disk);
    let why = host.disks.save().unwrap_err();
    assert_eq!(
        why,
        "disk 0 (file:twin): it is in use: hold the disks before the machine is saved"
    );
    let _ = host.disks.hold();
    assert!(host.disks.save().is_ok());
    host.disks.release();
    assert!(host.disks.save().is_err());
}

#[test]
fn registers_travel_and_an_interrupt_is_not_lost() {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    host.driver.request(0, FLUSH, 0, 0);
    assert_eq!(host.driver.answer_to(0), (0, 1));
    let _ = host.disks.hold();
    let mut moved = host.moved(&disk);
    for register in [0x44, 0x60, 0x70, 0x100] {
        assert_eq!(moved.driver.get(register), host.driver.get(register));
    }
    let irq = |host: &Host| host.disks.lines().map(|l| l.irq.read().is_ok()).next();
    assert_eq!(irq(&moved), Some(false));
    moved.disks.release();
    assert_eq!(irq(&moved), Some(true));
    moved.driver.write_block(1, 0, 1);
    assert_eq!(moved.driver.answer_to(1), (0, 1));
    // And on to the next.
    let _ = moved.disks.hold();
    let mut next = moved.moved(&disk);
    next.disks.release();
    next.driver.request(2, IN, 0, 512);
    assert_eq!(next.driver.answer_to(2), (0, 513));
}

#[test]
fn state_that_cannot_be_is_refused_in_words() {
    let disk = MemoryDisk::new(1 << 20);
    let source = source(&disk);
    let saved = serde_json::to_value(&source.disks.save().unwrap()[0]).unwrap();
    let cases: [(&str, Value, &str); 22] = [
        ("/bytes", json!(512), "is it the same disk?"),
        ("/registers/status", json!(64), "no device has"),
        ("/registers/status", json!(4), "started without features"),
        (
            "/registers/driver_features",
            json!(1u64 << 40),
            "uses features",
        ),
        ("/registers/queues", json!([]), "it has 0 queues"),
        ("/registers/queues/0/size", json!(3), "size or alignment"),
        ("/registers/queues/0/size", json!(1 << 20), "a queue's size"),
        ("/registers/queues/0/table", json!(RAM), "outside RAM"),
        (
            "/registers/queues/0/avail",
            json!(u64::MAX - 1),
            "outside RAM",
        ),
        ("/registers/queues/0/used", json!(1), "alignment"),
        ("/interrupts", json!(4), "no device has"),
        ("/positions", json!([]), "positions of 0 queues"),
        ("/broken", json!(true), "not started"),
        ("/next_job", json!(1), "not one that was given once"),
        ("/jobs/1/id", json!(0), "not one that was given once"),
        ("/jobs/0/extent/offset", json!(1), "not on the disk"),
        ("/jobs/0/extent/len", json!(512), "another length"),
        (
            "/jobs/0/extent/offset",
            json!(u64::MAX - 511),
            "not on the disk",
        ),
        ("/jobs/0/chain/queue", json!(1), "not started"),
        ("/jobs/0/chain/head", json!(64), "not there, or another's"),
        ("/jobs/0/chain/head", json!(3), "not there, or another's"),
        ("/jobs/0/chain/runs/0/0", json!(RAM - 1), "not RAM"),
    ];
    let refused = |changed: Value| {
        let changed: SavedDisk = serde_json::from_value(changed).unwrap();
        let heir = heir(&disk);
        let why = heir.disks.restore(&[changed]).unwrap_err();
        assert!(why.starts_with("disk 0 (file:twin): "), "{why}");
        why
    };
    for (at, value, words) in cases {
        let mut changed = saved.clone();
        *changed.pointer_mut(at).expect(at) = value;
        let why = refused(changed);
        assert!(why.contains(words), "{at}: {why}");
    }
    let mut changed = saved.clone();
    *changed.pointer_mut("/jobs/0/chain/status").unwrap() = json!(RAM);
    assert!(refused(changed).contains("status byte"));
    let why = heir(&disk).disks.restore(&[]).unwrap_err();
    assert_eq!(why, "it has 0 disks, the machine 1");
    let good: SavedDisk = serde_json::from_value(saved).unwrap();
    let heir = heir(&disk);
    heir.disks.restore(std::slice::from_ref(&good)).unwrap();
    assert!(heir.disks.restore(&[good]).is_err(), "twice");
}

#[test]
fn another_disk_than_the_guest_knows_is_refused() {
    let disk = MemoryDisk::new(1 << 20);
    let saved = source(&disk).disks.save().unwrap();
    let smaller = heir(&MemoryDisk::new(1 << 19));
    assert!(smaller.disks.restore(&saved).is_err());
    let read_only = DiskSpec {
        read_only: true,
        ..spec()
    };
    let read_only = Host::with(&disk, read_only, Role::Heir);
    let why = read_only.disks.restore(&saved).unwrap_err();
    assert!(why.contains("read-only here"), "{why}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any change of a byte is refused, or makes a device that does no harm.
    #[test]
    fn garbled_state_never_panics(at in any::<prop::sample::Index>(), byte: u8) {
        let disk = MemoryDisk::new(1 << 20);
        let source = source(&disk);
        let mut blob = postcard::to_stdvec(&source.disks.save().unwrap()).unwrap();
        let at = at.index(blob.len());
        blob[at] = byte;
        if let Ok(saved) = postcard::from_bytes::<Vec<SavedDisk>>(&blob) {
            let heir = heir(&disk);
            if heir.disks.restore(&saved).is_ok() {
                heir.disks.release();
                prop_assert!(!heir.disks.is_held());
            }
        }
    }
}
