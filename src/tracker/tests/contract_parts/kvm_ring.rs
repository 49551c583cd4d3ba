//! The contract, kept by `kvm-ring`.

use std::collections::BTreeSet;
use std::sync::Arc;

use vmferry_memory::GuestRam;
use vmferry_protocol::PageRange;
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind, make};

use crate::writer::Writer;
use crate::{PAGES, RAM, harvest, random_schedule, touch_all, untouched_then_touched};

fn ram_of(bytes: u64) -> Arc<GuestRam> {
    Arc::new(GuestRam::new(bytes).unwrap())
}

fn ring_machine(ram: &Arc<GuestRam>) -> Option<(Writer, Box<dyn DirtyTracker>)> {
    let writer = Writer::with_rings(ram, 1024)?;
    let tracker = make(TrackerKind::KvmRing, ram.clone(), Some(writer.kvm.clone())).unwrap();
    Some((writer, tracker))
}

#[test]
fn kvm_ring_misses_no_write_in_random_schedules() {
    let ram = ram_of(RAM);
    touch_all(&ram);
    let Some((mut writer, tracker)) = ring_machine(&ram) else {
        return;
    };
    for seed in 0..40 {
        // Pages that KVM maps writable when they are read count as written; none is missed.
        random_schedule(&*tracker, &ram, Some(&mut writer), false, seed, 250);
    }
}

#[test]
fn kvm_ring_leaves_untouched_pages_out_until_they_are_touched() {
    let ram = ram_of(64 << 20);
    let Some((mut writer, tracker)) = ring_machine(&ram) else {
        return;
    };
    untouched_then_touched(&*tracker, &ram);
    for page in harvest(&*tracker) {
        tracker.protect(PageRange::new(page, 1)).unwrap();
    }
    writer.write(7, 3);
    assert!(harvest(&*tracker).contains(&7));
}

/// All pages are protected from the start, so that writes to any of them are notified.
#[test]
fn kvm_ring_counts_notifications_once() {
    let ram = ram_of(RAM);
    touch_all(&ram);
    let Some((mut writer, tracker)) = ring_machine(&ram) else {
        return;
    };
    tracker.start().unwrap();
    let notified = || tracker.harvest(&mut |_| {}).unwrap().notifications;
    assert_eq!(notified(), 0);
    // The guest's code may be told of, too, when it is first read.
    writer.write(200, 1);
    assert!((1..=2).contains(&notified()));
    for page in [5, 12, 13, 29, 5] {
        writer.write(page, 1);
    }
    assert_eq!(notified(), 4);
    assert_eq!(notified(), 0);
    // As it can be written since, and was not protected again.
    writer.write(13, 2);
    assert_eq!(notified(), 0);
    tracker.protect(PageRange::new(12, 1)).unwrap();
    writer.write(12, 1);
    assert!((1..=2).contains(&notified()));
}

#[test]
fn kvm_ring_started_again_after_a_stop_begins_anew() {
    let ram = ram_of(RAM);
    touch_all(&ram);
    let Some((mut writer, tracker)) = ring_machine(&ram) else {
        return;
    };
    for round in 0..3 {
        tracker.start().unwrap();
        assert_eq!(harvest(&*tracker).len() as u64, PAGES);
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        assert_eq!(harvest(&*tracker), BTreeSet::new());
        writer.write(9, round);
        assert!(harvest(&*tracker).contains(&9));
        tracker.stop();
        assert!(tracker.harvest(&mut |_| {}).is_err());
        assert!(tracker.protect(PageRange::new(0, 1)).is_err());
        // Nobody listens, and the guest writes on.
        for page in 1..=255 {
            writer.write(page, round);
        }
    }
    // Another tracker of the same machine, as in its next migration.
    drop(tracker);
    let next = make(TrackerKind::KvmRing, ram.clone(), Some(writer.kvm.clone())).unwrap();
    next.start().unwrap();
    assert_eq!(harvest(&*next).len() as u64, PAGES);
}

/// More entries than a ring has, with nobody harvesting: the vCPU makes room by itself.
#[test]
fn kvm_ring_overflows_and_misses_nothing() {
    let ram = ram_of(RAM);
    touch_all(&ram);
    let Some((mut writer, tracker)) = ring_machine(&ram) else {
        return;
    };
    tracker.start().unwrap();
    let mut written = BTreeSet::new();
    for page in (1..=255).cycle().take(3000) {
        written.insert(page);
        writer.write(page, 1);
        if page % 3 == 0 {
            tracker.protect(PageRange::new(page, 1)).unwrap();
            written.remove(&page);
        }
    }
    let found = harvest(&*tracker);
    assert_eq!(written.difference(&found).next(), None);
}

#[test]
fn trackers_that_do_not_go_with_a_machine_say_so() {
    let ram = ram_of(RAM);
    let make = |kind, kvm| make(kind, ram.clone(), kvm).err().unwrap();
    let error = make(TrackerKind::KvmRing, None);
    assert!(error.to_string().contains("kvm-ring needs a KVM machine"));
    if let Some(plain) = Writer::new(&ram) {
        let error = make(TrackerKind::KvmRing, Some(plain.kvm.clone()));
        assert!(matches!(error, TrackerError::NoRings), "{error}");
    }
    if let Some(rings) = Writer::with_rings(&ram, 4096) {
        let error = make(TrackerKind::KvmLog, Some(rings.kvm.clone()));
        assert!(matches!(error, TrackerError::HasRings), "{error}");
    }
}
