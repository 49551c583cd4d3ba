//! Writes that raise no fault: into pages that were pinned before they were protected.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};
use vmferry_tracker::{DirtyTracker, TrackerKind, make};

use super::{PAGES, RAM, harvest, touch_all, wp_group};

const PAGE: u64 = 100;

/// A disk's read that begins before its page is protected and ends after that.
fn a_read_into_a_pinned_page_is_found(tracker: &dyn DirtyTracker, ram: &Arc<GuestRam>) {
    touch_all(ram);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; PAGE_SIZE as usize]).unwrap();
    let to = ram.hva(PageRange::new(PAGE, 1)).unwrap() as *mut u8;
    let mut ring = IoUring::new(4).unwrap();
    let buffer = libc::iovec {
        iov_base: to.cast(),
        iov_len: PAGE_SIZE as usize,
    };
    // SAFETY: the page is mapped for longer than the ring lives; this pins it.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();

    tracker.start().unwrap();
    assert_eq!(harvest(tracker).len() as u64, PAGES);
    tracker.protect(PageRange::new(0, PAGES)).unwrap();
    assert_eq!(harvest(tracker), BTreeSet::new());
    let fd = types::Fd(file.as_raw_fd());
    let read = opcode::ReadFixed::new(fd, to, PAGE_SIZE as u32, 0).build();
    // SAFETY: file and page outlive the operation, which is waited for.
    unsafe { ring.submission().push(&read) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().result(), PAGE_SIZE as i32);
    // As whoever started it does when it has ended.
    let at = GuestAddress(PAGE * PAGE_SIZE);
    let slice = ram
        .guest_memory()
        .get_slice(at, PAGE_SIZE as usize)
        .unwrap();
    slice.bitmap().mark_dirty(0, slice.len());

    assert!(harvest(tracker).contains(&PAGE));
    tracker.protect(PageRange::new(PAGE, 1)).unwrap();
    assert_eq!(harvest(tracker), BTreeSet::new());
    tracker.stop();
}

#[test]
fn wp_group_finds_a_read_into_a_pinned_page() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    for size in ["4k", "2m"] {
        a_read_into_a_pinned_page_is_found(&wp_group(&ram, size), &ram);
    }
}

#[test]
fn wp_async_finds_a_read_into_a_pinned_page() {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    let tracker = make(TrackerKind::WpAsync, ram.clone(), None).unwrap();
    a_read_into_a_pinned_page_is_found(&*tracker, &ram);
}
