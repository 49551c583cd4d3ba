//! A split virtqueue in guest RAM, from the driver's side (Virtio 1.2, 2.7). Polled: the device
//! is asked not to interrupt.

use core::sync::atomic::{Ordering, fence};

use super::layout::{AVAIL, BUFFERS, DESCRIPTORS, HEADER_BYTES, HEADERS, STATUS, USED};
use crate::params::PAGE;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Flag of the available ring, and of the used ring.
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Bytes of a request header.
const REQUEST_BYTES: u32 = 16;

/// What the data buffer of a request is to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    None,
    In,
    Out,
}

/// A vCPU's queue, with headers and buffers for its slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    base: *mut u8,
    /// Guest-physical address of `base`.
    gpa: u64,
    size: u16,
}

impl Queue {
    /// # Safety
    /// `base` is page aligned, at guest-physical address `gpa`, and valid for the part of a vCPU
    /// by [`Layout::part`](super::Layout::part), for as long as the queue is used; nobody but the
    /// device uses it. `size` is a power of two of at most 256, and at least three for each slot.
    pub(super) unsafe fn new(base: *mut u8, gpa: u64, size: u16) -> Self {
        Self { base, gpa, size }
    }

    /// Guest-physical addresses of descriptors, available ring and used ring.
    pub(super) const fn addresses(gpa: u64) -> [u64; 3] {
        [gpa + DESCRIPTORS, gpa + AVAIL, gpa + USED]
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        debug_assert!(offset < BUFFERS + 64 * PAGE);
        // SAFETY: callers stay inside the vCPU's part, by the size of the queue.
        unsafe { self.base.add(offset as usize).cast() }
    }

    fn put<T>(&self, offset: u64, value: T) {
        // SAFETY: as `at`; all offsets are aligned to what is kept there.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    fn get<T>(&self, offset: u64) -> T {
        // SAFETY: as `put`, and all that is read are numbers.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// The buffer of `slot`: a page.
    pub(super) fn buffer(&self, slot: u32) -> *mut u64 {
        self.at(BUFFERS + u64::from(slot) * PAGE)
    }

    /// Writes the header and the descriptors of `slot`, and a status that no device gives.
    pub(super) fn prepare(&self, slot: u32, kind: u32, sector: u64, data: Data) {
        let header = HEADERS + u64::from(slot) * HEADER_BYTES;
        self.put(header, kind);
        self.put(header + 4, 0u32);
        self.put(header + 8, sector);
        self.put(header + STATUS, u8::MAX);
        let head = Self::head(slot);
        let buffer = BUFFERS + u64::from(slot) * PAGE;
        let second = match data {
            Data::None => head + 2,
            _ => head + 1,
        };
        self.describe(head, header, REQUEST_BYTES, NEXT, second);
        match data {
            Data::None => {}
            Data::In => self.describe(head + 1, buffer, PAGE as u32, NEXT | WRITE, head + 2),
            Data::Out => self.describe(head + 1, buffer, PAGE as u32, NEXT, head + 2),
        }
        self.describe(head + 2, header + STATUS, 1, WRITE, 0);
    }

    fn describe(&self, n: u16, offset: u64, len: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + u64::from(n) * 16;
        self.put(at, self.gpa + offset);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    const fn head(slot: u32) -> u16 {
        slot as u16 * 3
    }

    /// The slot whose chain begins at `id`, below `depth`.
    pub(super) fn slot_of(id: u32, depth: u64) -> Option<u32> {
        (id.is_multiple_of(3) && u64::from(id / 3) < depth).then_some(id / 3)
    }

    /// Puts `slot` in the available ring at `index`, for [`Queue::publish`] to make known.
    pub(super) fn offer(&self, index: u16, slot: u32) {
        let place = u64::from(index & (self.size - 1));
        self.put(AVAIL + 4 + place * 2, Self::head(slot));
    }

    /// Makes all below `index` known to the device; true where it wants to be told.
    pub(super) fn publish(&self, index: u16) -> bool {
        self.put(AVAIL, NO_INTERRUPT);
        fence(Ordering::Release);
        self.put(AVAIL + 2, index);
        // The device sets its flag, then looks at the index; here it is the other way round.
        fence(Ordering::SeqCst);
        self.get::<u16>(USED) & NO_NOTIFY == 0
    }

    /// How far the device has come in the used ring.
    pub(super) fn used(&self) -> u16 {
        let index = self.get(USED + 2);
        fence(Ordering::Acquire);
        index
    }

    /// Id and length of a completion.
    pub(super) fn completion(&self, index: u16) -> (u32, u32) {
        let at = USED + 4 + u64::from(index & (self.size - 1)) * 8;
        (self.get(at), self.get(at + 4))
    }

    /// Status byte of `slot`.
    pub(super) fn status(&self, slot: u32) -> u8 {
        self.get(HEADERS + u64::from(slot) * HEADER_BYTES + STATUS)
    }
}
