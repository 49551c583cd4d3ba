//! One contract for every tracker: no write is ever missed, whoever made it, in any order of
//! writing, harvesting and protecting; and, from those that tell of each page by itself, a page
//! that nobody wrote does not come back.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "contract_parts/dma.rs"]
mod dma;
#[path = "contract_parts/kvm_ring.rs"]
mod kvm_ring;
#[path = "contract_parts/writer.rs"]
mod writer;

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vm_memory::{Bytes, GuestAddress};
use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};
use vmferry_tracker::{DirtyTracker, Throttle, TrackerKind, WpGroup, make};
use writer::Writer;

const RAM: u64 = 4 << 20;
const PAGES: u64 = RAM / PAGE_SIZE;
/// A real-mode guest reaches these pages by a segment register; page 0 holds its code.
const VCPU_PAGES: std::ops::Range<u64> = 1..256;

fn harvest(tracker: &dyn DirtyTracker) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    let stats = tracker
        .harvest(&mut |run| pages.extend(run.frames()))
        .unwrap();
    assert_eq!(stats.pages, pages.len() as u64);
    pages
}

fn touch_all(ram: &GuestRam) {
    for page in 0..PAGES {
        ram.copy_in(PageRange::new(page, 1), &[1; PAGE_SIZE as usize])
            .unwrap();
    }
}

/// What a random schedule does to a page.
enum By {
    Vcpu,
    Vmm,
}

/// `exact`: nothing but what was written may be harvested. That is so with wp-async, and with
/// wp-group where a group is a page: page tables tell of writes and of nothing else. Larger groups
/// bring neighbours along, and KVM counts a page as written that it maps writable for a read.
fn random_schedule(
    tracker: &dyn DirtyTracker,
    ram: &GuestRam,
    mut vcpu: Option<&mut Writer>,
    exact: bool,
    seed: u64,
    steps: u32,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    tracker.start().unwrap();
    let mut written: BTreeSet<u64> = (0..PAGES).collect();
    // By the VMM, since the last harvest: also noted in RAM's own bitmap, for the next one.
    let mut noted = BTreeSet::new();
    let mut harvested = BTreeSet::new();
    for step in 0..steps {
        match rng.random_range(0..10) {
            0..=4 => {
                let by = if vcpu.is_some() && rng.random() {
                    By::Vcpu
                } else {
                    By::Vmm
                };
                match (by, vcpu.as_deref_mut()) {
                    (By::Vcpu, Some(writer)) => {
                        let page = rng.random_range(VCPU_PAGES);
                        writer.write(page, step as u8);
                        written.insert(page);
                    }
                    _ => {
                        let page = rng.random_range(1..PAGES);
                        ram.guest_memory()
                            .write_obj(step, GuestAddress(page * PAGE_SIZE + 16))
                            .unwrap();
                        written.insert(page);
                        noted.insert(page);
                    }
                }
            }
            5..=7 => {
                let start = rng.random_range(0..PAGES);
                let count = rng.random_range(1..=(PAGES - start).min(200));
                // As the engine does: what is protected (and read) was harvested.
                for page in start..start + count {
                    if harvested.remove(&page) {
                        tracker.protect(PageRange::new(page, 1)).unwrap();
                        written.remove(&page);
                    }
                }
            }
            _ => {
                harvested = harvest(tracker);
                // Once more where it was protected since: what is noted may have been written by
                // somebody who raises no fault, at any time.
                written.append(&mut noted);
                let missed: Vec<_> = written.difference(&harvested).collect();
                assert!(
                    missed.is_empty(),
                    "seed {seed} step {step}: missed {missed:?}"
                );
                if exact {
                    let extra: Vec<_> = harvested.difference(&written).collect();
                    assert!(extra.is_empty(), "seed {seed} step {step}: extra {extra:?}");
                }
            }
        }
    }
    tracker.stop();
}

#[test]
fn kvm_log_misses_no_write_in_random_schedules() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let Some(mut writer) = Writer::new(&ram) else {
        return;
    };
    let tracker = make(TrackerKind::KvmLog, ram.clone(), Some(writer.kvm.clone())).unwrap();
    for seed in 0..40 {
        random_schedule(&*tracker, &ram, Some(&mut writer), false, seed, 250);
    }
}

#[test]
fn kvm_wp_async_misses_no_write_of_a_vcpu() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let Some(mut writer) = Writer::new(&ram) else {
        return;
    };
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    for seed in 0..40 {
        random_schedule(&*tracker, &ram, Some(&mut writer), true, seed, 250);
    }
}

#[test]
fn wp_async_misses_no_write_in_random_schedules() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    for seed in 0..40 {
        random_schedule(&*tracker, &ram, None, true, seed, 250);
    }
}

/// Group sizes that the suite goes through.
const SIZES: [&str; 5] = ["auto", "4k", "64k", "2m", "32m"];

fn wp_group(ram: &Arc<GuestRam>, size: &str) -> WpGroup {
    WpGroup::new(ram.clone(), size.parse().unwrap()).unwrap()
}

#[test]
fn kvm_wp_group_misses_no_write_of_a_vcpu() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let Some(mut writer) = Writer::new(&ram) else {
        return;
    };
    for size in SIZES {
        let tracker = wp_group(&ram, size);
        for seed in 0..10 {
            random_schedule(&tracker, &ram, Some(&mut writer), size == "4k", seed, 250);
        }
    }
}

#[test]
fn wp_group_misses_no_write_in_random_schedules() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    for size in SIZES {
        let tracker = wp_group(&ram, size);
        for seed in 0..10 {
            random_schedule(&tracker, &ram, None, size == "4k", seed, 250);
        }
    }
}

#[test]
fn wp_group_leaves_untouched_pages_out_until_they_are_touched() {
    let ram = Arc::new(GuestRam::new(64 << 20).unwrap());
    untouched_then_touched(&wp_group(&ram, "auto"), &ram);
}

#[test]
fn wp_group_sees_what_the_kernel_reads_into_ram() {
    use std::os::fd::AsRawFd;
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = wp_group(&ram, "64k");
    tracker.start().unwrap();
    assert_eq!(harvest(&tracker).len() as u64, PAGES);
    tracker.protect(PageRange::new(0, PAGES)).unwrap();
    assert_eq!(harvest(&tracker), BTreeSet::new());
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    let to = ram.hva(PageRange::new(100, 1)).unwrap();
    // SAFETY: the page is mapped RAM that nothing else uses.
    let n = unsafe { libc::pread(file.as_raw_fd(), to as *mut libc::c_void, 4096, 0) };
    assert_eq!(n, 4096);
    assert_eq!(harvest(&tracker), (96..112).collect());
}

#[test]
fn wp_group_tells_one_notification_a_group_and_how_long_it_took() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = wp_group(&ram, "64k");
    tracker.start().unwrap();
    tracker.protect(PageRange::new(0, 64)).unwrap();
    for page in [3, 4, 5, 40, 700] {
        ram.guest_memory()
            .write_obj(page, GuestAddress(page * PAGE_SIZE))
            .unwrap();
    }
    let stats = tracker.harvest(&mut |_| {}).unwrap();
    assert_eq!(stats.notifications, 2);
    assert!(!stats.stall.is_zero());
    assert_eq!(tracker.harvest(&mut |_| {}).unwrap().notifications, 0);
}

#[test]
fn wp_group_lets_writers_go_when_a_throttle_is_lifted() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = wp_group(&ram, "64k");
    assert!(tracker.can_throttle());
    tracker.start().unwrap();
    tracker.protect(PageRange::new(0, PAGES)).unwrap();
    // A page a minute: nobody would get far.
    tracker.throttle(Some(Throttle {
        pages_per_second: 1,
        most_pct: 99,
    }));
    let (wrote, progress) = std::sync::mpsc::channel();
    let writer = {
        let ram = ram.clone();
        std::thread::spawn(move || {
            for page in (0..PAGES).step_by(16) {
                let at = GuestAddress(page * PAGE_SIZE);
                ram.guest_memory().write_obj(7u64, at).unwrap();
                wrote.send(page).unwrap();
            }
        })
    };
    assert_eq!(progress.recv(), Ok(0));
    tracker.throttle(None);
    writer.join().unwrap();
    assert_eq!(tracker.costs().notifications, PAGES / 16);
}

#[test]
fn wp_group_stopped_lets_writers_go_on_and_leaves_no_thread_behind() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = wp_group(&ram, "2m");
    for round in 0..20u64 {
        tracker.start().unwrap();
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let ram = ram.clone();
                std::thread::spawn(move || {
                    for page in (0..PAGES).rev() {
                        let at = GuestAddress(page * PAGE_SIZE + 64 * n);
                        ram.guest_memory().write_obj(round, at).unwrap();
                    }
                })
            })
            .collect();
        tracker.stop();
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(tracker.protect(PageRange::new(0, 1)).is_err());
    }
    assert_eq!(
        ram.guest_memory().read_obj::<u64>(GuestAddress(0)).unwrap(),
        19
    );
}

#[test]
fn kvm_log_leaves_untouched_pages_out_until_they_are_touched() {
    let ram = Arc::new(GuestRam::new(64 << 20).unwrap());
    let Some(mut writer) = Writer::new(&ram) else {
        return;
    };
    let tracker = make(TrackerKind::KvmLog, ram.clone(), Some(writer.kvm.clone())).unwrap();
    untouched_then_touched(&*tracker, &ram);
    // And by the guest, in a part of RAM that exists already.
    let before = harvest(&*tracker);
    for page in &before {
        tracker.protect(PageRange::new(*page, 1)).unwrap();
    }
    writer.write(7, 3);
    assert!(harvest(&*tracker).contains(&7));
}

#[test]
fn wp_async_leaves_untouched_pages_out_until_they_are_touched() {
    let ram = Arc::new(GuestRam::new(64 << 20).unwrap());
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    untouched_then_touched(&*tracker, &ram);
}

fn untouched_then_touched(tracker: &dyn DirtyTracker, ram: &GuestRam) {
    // Not page 0: a guest's code may be there.
    ram.copy_in(PageRange::new(2, 1), &[1; 4096]).unwrap();
    tracker.start().unwrap();
    let first = harvest(tracker);
    assert!(first.contains(&2));
    assert!(first.iter().all(|&p| p < 512), "only the touched huge page");
    for page in &first {
        tracker.protect(PageRange::new(*page, 1)).unwrap();
    }
    assert_eq!(harvest(tracker), BTreeSet::new());
    ram.guest_memory()
        .write_obj(1u64, GuestAddress(9000 * PAGE_SIZE))
        .unwrap();
    assert!(harvest(tracker).contains(&9000));
}

/// What a write costs the guest is counted once, and only for pages that were protected.
fn notifications_are_counted_once(tracker: &dyn DirtyTracker, mut write: impl FnMut(u64)) {
    tracker.start().unwrap();
    let notified = || tracker.harvest(&mut |_| {}).unwrap().notifications;
    assert_eq!(notified(), 0);
    tracker.protect(PageRange::new(10, 20)).unwrap();
    for page in [5, 12, 13, 29] {
        write(page);
    }
    assert_eq!(notified(), 3);
    assert_eq!(notified(), 0);
    tracker.protect(PageRange::new(12, 1)).unwrap();
    write(12);
    assert_eq!(notified(), 1);
}

#[test]
fn wp_async_counts_notifications_once() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    notifications_are_counted_once(&*tracker, |page| {
        ram.guest_memory()
            .write_obj(page, GuestAddress(page * PAGE_SIZE + 8))
            .unwrap();
    });
}

#[test]
fn kvm_log_counts_notifications_once() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let Some(mut writer) = Writer::new(&ram) else {
        return;
    };
    let tracker = make(TrackerKind::KvmLog, ram.clone(), Some(writer.kvm.clone())).unwrap();
    notifications_are_counted_once(&*tracker, |page| writer.write(page, 1));
}

#[test]
fn a_tracker_started_again_after_a_stop_begins_anew() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    for _ in 0..3 {
        tracker.start().unwrap();
        assert_eq!(harvest(&*tracker).len() as u64, PAGES);
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        assert_eq!(harvest(&*tracker).len(), 0);
        tracker.stop();
        assert!(tracker.harvest(&mut |_| {}).is_err());
    }
}

#[test]
fn kvm_log_started_again_after_a_stop_begins_anew() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    touch_all(&ram);
    let Some(writer) = Writer::new(&ram) else {
        return;
    };
    let tracker = make(TrackerKind::KvmLog, ram.clone(), Some(writer.kvm.clone())).unwrap();
    for _ in 0..3 {
        tracker.start().unwrap();
        assert_eq!(harvest(&*tracker).len() as u64, PAGES);
        tracker.protect(PageRange::new(0, PAGES)).unwrap();
        assert_eq!(harvest(&*tracker).len(), 0);
        tracker.stop();
        assert!(tracker.harvest(&mut |_| {}).is_err());
    }
}

#[test]
fn without_a_kvm_machine_kvm_log_says_what_to_use() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    let error = make(TrackerKind::KvmLog, ram, None).err().unwrap();
    assert!(error.to_string().contains("wp-group"), "{error}");
}
