//! The least that a driver does, step by step, and whatever it must not do.

use std::sync::Arc;

use virtio_bindings::virtio_ring;
use vm_memory::{Bytes, GuestAddress};
use vmferry_guest::abi::DISK_MMIO_BASE;
use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::{Disks, until};

pub(super) const SIZE: u16 = 64;
pub(super) const TABLE: u64 = 0x1_0000;
pub(super) const AVAIL: u64 = 0x1_1000;
pub(super) const USED: u64 = 0x1_2000;
/// Each request has two pages: header and status, data.
const SLOTS: u64 = 0x10_0000;
pub(super) const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
pub(super) const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;

/// Request types.
pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const ZEROES: u32 = 13;

pub(crate) struct Driver {
    pub(super) ram: Arc<GuestRam>,
    pub(super) disks: Arc<Disks>,
    avail: u16,
    used: u16,
}

impl Driver {
    pub(super) fn new(ram: Arc<GuestRam>, disks: Arc<Disks>) -> Self {
        Self {
            ram,
            disks,
            avail: 0,
            used: 0,
        }
    }

    pub(super) fn get(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.disks.mmio_read(DISK_MMIO_BASE + register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn set(&self, register: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.disks.mmio_write(DISK_MMIO_BASE + register, &bytes);
    }

    pub(super) fn start(&mut self) {
        self.start_with(VERSION_1);
    }

    /// Resets the device and starts it with these features.
    pub(super) fn start_with(&mut self, features: u64) {
        (self.avail, self.used) = (0, 0);
        for at in [AVAIL, USED] {
            self.write(at, &[0; 4]);
        }
        self.set(0x70, 0);
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x24, half);
            self.set(0x20, (features >> (32 * half)) as u32);
        }
        self.set(0x70, 11);
        assert_eq!(self.get(0x70), 11);
        self.set(0x30, 0);
        self.set(0x38, u32::from(SIZE));
        self.set(0x80, TABLE as u32);
        self.set(0x90, AVAIL as u32);
        self.set(0xa0, USED as u32);
        self.set(0x44, 1);
        self.set(0x70, 15);
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let memory = self.ram.guest_memory();
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.ram.guest_memory();
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(super) fn u16_at(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// Writes descriptor `index` of a table: address, length, flags, next.
    pub(super) fn describe_in(&self, table: u64, index: u16, d: (u64, u32, u16, u16)) {
        let at = table + u64::from(index) * 16;
        self.write(at, &d.0.to_le_bytes());
        self.write(at + 8, &d.1.to_le_bytes());
        self.write(at + 12, &d.2.to_le_bytes());
        self.write(at + 14, &d.3.to_le_bytes());
    }

    pub(super) fn describe(&self, index: u16, d: (u64, u32, u16, u16)) {
        self.describe_in(TABLE, index, d);
    }

    /// Puts a chain's head into the available ring, without a notification.
    pub(super) fn offer(&mut self, head: u16) {
        let at = AVAIL + 4 + u64::from(self.avail % SIZE) * 2;
        self.write(at, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(AVAIL + 2, &self.avail.to_le_bytes());
    }

    pub(super) fn notify(&self) {
        self.set(0x50, 0);
    }

    /// Where the header of the request in `slot` is; its status byte follows, its data is in the
    /// next page.
    pub(super) fn header(slot: u16) -> u64 {
        SLOTS + u64::from(slot) * 0x2000
    }

    pub(super) fn data(slot: u16) -> u64 {
        Self::header(slot) + 0x1000
    }

    /// Writes header and descriptors of a request with `len` bytes of data; its head.
    pub(super) fn prepare(&self, slot: u16, kind: u32, sector: u64, len: u32) -> u16 {
        let (at, head) = (Self::header(slot), slot * 3);
        self.write(at, &kind.to_le_bytes());
        self.write(at + 4, &[0; 4]);
        self.write(at + 8, &sector.to_le_bytes());
        self.write(at + 16, &[0xee]);
        let next = if len == 0 { head + 2 } else { head + 1 };
        self.describe(head, (at, 16, NEXT, next));
        let to_guest = matches!(kind, IN | GET_ID);
        let flags = if to_guest { NEXT | WRITE } else { NEXT };
        self.describe(head + 1, (Self::data(slot), len, flags, head + 2));
        self.describe(head + 2, (at + 16, 1, WRITE, 0));
        head
    }

    /// Makes a request and notifies.
    pub(super) fn request(&mut self, slot: u16, kind: u32, sector: u64, len: u32) {
        let head = self.prepare(slot, kind, sector, len);
        self.offer(head);
        self.notify();
    }

    /// Makes a request to write a block of 4 KiB full of `byte`.
    pub(crate) fn write_block(&mut self, slot: u16, block: u64, byte: u8) {
        self.write(Self::data(slot), &[byte; 4096]);
        self.request(slot, OUT, block * 8, 4096);
    }

    /// How many requests were answered.
    pub(super) fn answered(&self) -> u16 {
        self.u16_at(USED + 2)
    }

    /// Whether there is an answer that was not taken.
    pub(super) fn has_answer(&self) -> bool {
        self.answered() != self.used
    }

    /// Waits for the next answer: head and length of the used element.
    pub(super) fn answer(&mut self) -> (u32, u32) {
        until("an answer", || self.has_answer());
        let at = USED + 4 + u64::from(self.used % SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        let id = u32::from_le_bytes(self.read(at));
        (id, u32::from_le_bytes(self.read(at + 4)))
    }

    /// Waits for the answer to the request in `slot`: its status byte, and the length.
    pub(crate) fn answer_to(&mut self, slot: u16) -> (u8, u32) {
        let (head, len) = self.answer();
        assert_eq!(head, u32::from(slot) * 3);
        let [status] = self.read(Self::header(slot) + 16);
        (status, len)
    }

    /// Copies RAM and what the driver knows.
    pub(super) fn copy_to(&self, other: &mut Self) {
        let copy = |range: PageRange| {
            let mut pages = vec![0; (range.count * PAGE_SIZE) as usize];
            self.ram.copy_out(range, &mut pages).unwrap();
            other.ram.copy_in(range, &pages).unwrap();
        };
        self.ram.populated(copy).unwrap();
        (other.avail, other.used) = (self.avail, self.used);
    }
}
