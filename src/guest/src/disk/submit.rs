//! Issues requests.

use super::Disk;
use super::device::notify;
use super::ledger::Allowed;
use super::queue::Data;
use super::stamp::{Stamp, fill, poison};
use crate::params::PAGE;
use crate::platform::Platform;

/// Kinds of requests, as the device names them.
pub(super) const READ: u32 = 0;
pub(super) const WRITE: u32 = 1;
pub(super) const FLUSH: u32 = 4;

/// What the driver notes of a request in flight.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// Block of the share.
    pub(super) block: u64,
    /// Of a flush: writes acknowledged when it was issued.
    pub(super) acked: u64,
    pub(super) kind: u32,
    /// Of a write: its place in the ledger's entry.
    pub(super) place: u32,
    /// Of a read.
    pub(super) allowed: Allowed,
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Disk {
    /// A slot that is neither in flight nor wanted by a check.
    pub(super) fn free_slot(&mut self) -> Option<u32> {
        let taken = self.busy() | self.state().check.again;
        let slot = taken.trailing_ones();
        (u64::from(slot) < self.params.disk_depth).then_some(slot)
    }

    /// The record of `slot`, which is below `disk_depth`.
    pub(super) fn slot(&self, slot: u32) -> *mut Slot {
        debug_assert!(u64::from(slot) < self.params.disk_depth);
        // SAFETY: two pages hold a record for each slot.
        unsafe { self.slots.add(slot as usize) }
    }

    /// Issues a read of a block of the share. False where it is no such block.
    pub(super) fn read(&mut self, slot: u32, block: u64) -> bool {
        let Some(entry) = self.entry(block) else {
            return false;
        };
        // SAFETY: an entry of this share; the buffer of a slot that is not in flight.
        let allowed = unsafe {
            let mut copy = entry.read_volatile();
            let allowed = copy.read();
            entry.write_volatile(copy);
            poison(self.queue.buffer(slot));
            allowed
        };
        let record = Slot {
            block,
            kind: READ,
            allowed,
            ..Slot::default()
        };
        self.issue(slot, record, Data::In);
        true
    }

    /// Issues a write of a block of the share. False where it is no such block, or has as many in
    /// flight as it may have.
    pub(super) fn write(&mut self, slot: u32, block: u64) -> bool {
        let Some(entry) = self.entry(block) else {
            return false;
        };
        // SAFETY: an entry of this share.
        let issued = unsafe {
            let mut copy = entry.read_volatile();
            let issued = copy.issue();
            entry.write_volatile(copy);
            issued
        };
        let Some((place, generation)) = issued else {
            return false;
        };
        let stamp = Stamp {
            nonce: self.state().nonce,
            block: self.share.from + block,
            generation,
            vcpu: self.index,
        };
        // SAFETY: the buffer of a slot that is not in flight.
        unsafe { fill(self.queue.buffer(slot), &stamp) };
        let record = Slot {
            block,
            kind: WRITE,
            place,
            ..Slot::default()
        };
        self.state().writing |= 1 << slot;
        self.issue(slot, record, Data::Out);
        true
    }

    /// Issues a flush.
    pub(super) fn flush(&mut self, slot: u32) {
        let record = Slot {
            kind: FLUSH,
            acked: self.state().acked,
            ..Slot::default()
        };
        self.issue(slot, record, Data::None);
    }

    fn issue(&mut self, slot: u32, record: Slot, data: Data) {
        let sector = match data {
            Data::None => 0,
            _ => (self.share.from + record.block) * (PAGE / 512),
        };
        // SAFETY: a record of this vCPU's.
        unsafe { self.slot(slot).write_volatile(record) };
        self.queue.prepare(slot, record.kind, sector, data);
        let available = self.state().available as u16;
        self.queue.offer(available, slot);
        let state = self.state();
        state.busy |= 1 << slot;
        state.available = state.available.wrapping_add(1);
    }

    /// Makes what was issued known to the device.
    pub(super) fn publish(&mut self, platform: &mut impl Platform) {
        let available = self.state().available as u16;
        if self.queue.publish(available) {
            notify(platform, self.index);
        }
    }
}
