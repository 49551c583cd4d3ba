use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::KvmRing;
use crate::DirtyTracker;
use crate::auto::{Sweep, TryGuest};

const PAGES: u64 = 4096;
/// Written by the guest: all but the group of its code. More than a ring holds.
const HOT: Sweep = Sweep {
    first: 512,
    stride: 1,
    count: PAGES - 512,
};

fn guest(ring: u32) -> Option<(Arc<GuestRam>, TryGuest, KvmRing)> {
    let ram = Arc::new(GuestRam::new(PAGES * PAGE_SIZE).unwrap());
    for page in 0..PAGES {
        ram.copy_in(PageRange::new(page, 1), &[1; PAGE_SIZE as usize])
            .unwrap();
    }
    ram.take_vmm_writes(|_| {});
    match TryGuest::new(ram.clone(), Some(ring)) {
        Err(error) => {
            println!("SKIPPED (no KVM with dirty rings: {error})");
            None
        }
        Ok(guest) => {
            let rings = guest.kvm().rings.unwrap();
            let tracker = KvmRing::new(rings, ram.clone());
            Some((ram, guest, tracker))
        }
    }
}

/// Pages found beside the guest's code, which KVM may map writable when it is read; and
/// notifications.
fn harvest(tracker: &KvmRing) -> (Vec<u64>, u64) {
    let mut pages = Vec::new();
    let stats = tracker
        .harvest(&mut |run| pages.extend(run.frames()))
        .unwrap();
    pages.retain(|&page| page >= HOT.first);
    (pages, stats.notifications)
}

#[test]
fn kvm_ring_that_overflows_loses_nothing() {
    let Some((_, mut guest, tracker)) = guest(1024) else {
        return;
    };
    for round in 0..3 {
        tracker.start().unwrap();
        assert_eq!(harvest(&tracker).0.len() as u64, HOT.count);
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        assert_eq!(harvest(&tracker), (vec![], 0));
        guest.write(HOT, round).unwrap();
        let (pages, notifications) = harvest(&tracker);
        let hot: Vec<u64> = (512..PAGES).collect();
        assert_eq!(pages, hot, "round {round}");
        // Full rings are given back, and their pages are protected: some may be told twice.
        assert!(notifications >= HOT.count);
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        let few = Sweep {
            first: 600,
            stride: 700,
            count: 5,
        };
        guest.write(few, round).unwrap();
        let (pages, notifications) = harvest(&tracker);
        assert_eq!(pages, [600, 1300, 2000, 2700, 3400]);
        assert!((5..=6).contains(&notifications), "{notifications}");
        tracker.stop();
        guest.write(HOT, round).unwrap();
    }
}

/// What a migration does: copies of pages protected before, until the guest stands still.
#[test]
fn kvm_ring_copies_all_that_a_guest_writes_meanwhile() {
    for ring in [1024, 65536] {
        let Some((ram, mut guest, tracker)) = guest(ring) else {
            return;
        };
        for _ in 0..4 {
            guest = copied_while_it_runs(&ram, guest, &tracker);
        }
    }
}

fn copied_while_it_runs(ram: &GuestRam, mut guest: TryGuest, tracker: &KvmRing) -> TryGuest {
    tracker.start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let until = stop.clone();
    let running = std::thread::spawn(move || {
        let mut value = 0u8;
        while !until.load(Ordering::Relaxed) {
            value = value.wrapping_add(1);
            guest.write(HOT, value).unwrap();
        }
        guest
    });
    let mut copy = vec![0; (PAGES * PAGE_SIZE) as usize];
    let mut pass = || {
        let mut runs = Vec::new();
        tracker.harvest(&mut |run| runs.push(run)).unwrap();
        for mut run in runs {
            while run.count > 0 {
                let part = PageRange::new(run.start, run.count.min(64));
                tracker.protect(part).unwrap();
                let at = (part.start * PAGE_SIZE) as usize;
                let to = &mut copy[at..at + part.bytes() as usize];
                ram.copy_out(part, to).unwrap();
                run = PageRange::new(part.end(), run.count - part.count);
            }
        }
    };
    for _ in 0..5 {
        pass();
        // Every page is written again: were one not told of, it would show.
        std::thread::sleep(Duration::from_millis(15));
    }
    stop.store(true, Ordering::Relaxed);
    let guest = running.join().unwrap();
    pass();
    let mut now = vec![0; copy.len()];
    ram.copy_out(PageRange::new(0, PAGES), &mut now).unwrap();
    let missed = (0..PAGES as usize).filter(|p| now[p * 4096] != copy[p * 4096]);
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<usize>::new());
    tracker.stop();
    guest
}
