//! Takes what came back, and checks it.

use super::ledger::Entry;
use super::queue::Queue;
use super::stamp::{SECTORS, Stamp, differs, inspect};
use super::submit::{FLUSH, Slot, WRITE};
use super::{Disk, Fault};
use crate::params::PAGE;
use crate::platform::Platform;

/// Status bytes of a device.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
/// Bytes that a device writes: the status, before it the data of a read.
const STATUS_BYTES: u32 = 1;
const READ_BYTES: u32 = PAGE as u32 + STATUS_BYTES;

impl Disk {
    /// Takes all that has come back.
    pub(super) fn poll(&mut self, platform: &mut impl Platform) {
        let seen = self.state().used as u16;
        let fresh = self.queue.used().wrapping_sub(seen);
        if fresh == 0 {
            return;
        }
        let in_flight = self.busy().count_ones();
        for n in 0..fresh.min(in_flight as u16) {
            let at = seen.wrapping_add(n);
            let (id, len) = self.queue.completion(at);
            self.state().used = u64::from(at.wrapping_add(1));
            let slot = Queue::slot_of(id, self.params.disk_depth)
                .filter(|&slot| self.busy() >> slot & 1 != 0);
            let Some(slot) = slot else {
                return self.break_down(platform, Fault::NotInFlight { id });
            };
            self.complete(platform, slot, len);
        }
        if u32::from(fresh) > in_flight {
            let claimed = fresh.into();
            self.break_down(platform, Fault::TooMany { in_flight, claimed });
        }
    }

    fn complete(&mut self, platform: &mut impl Platform, slot: u32, len: u32) {
        // SAFETY: a record of this vCPU's.
        let record = unsafe { self.slot(slot).read_volatile() };
        let status = self.queue.status(slot);
        let bit = 1 << slot;
        let state = self.state();
        state.busy &= !bit;
        state.writing &= !bit;
        match (status, record.kind) {
            (OK, WRITE) => state.counters.writes = state.counters.writes.wrapping_add(1),
            (OK, FLUSH) => state.counters.flushes = state.counters.flushes.wrapping_add(1),
            (OK, _) => state.counters.reads = state.counters.reads.wrapping_add(1),
            _ => state.counters.errors = state.counters.errors.wrapping_add(1),
        }
        self.check_form(platform, &record, status, len);
        match record.kind {
            FLUSH if status == OK => {
                let state = self.state();
                state.flushed = state.flushed.max(record.acked);
            }
            FLUSH => {}
            WRITE => self.written(platform, &record, status == OK),
            _ => self.been_read(platform, slot, &record, status == OK),
        }
    }

    fn check_form(&mut self, platform: &mut impl Platform, record: &Slot, status: u8, len: u32) {
        let block = self.share.from.wrapping_add(record.block);
        let mut wrong = |what, expected, found| {
            let fault = Fault::Completion {
                what,
                block,
                expected,
                found,
            };
            self.fail(platform, fault);
        };
        if status > IO_ERROR {
            wrong("status", OK.into(), status.into());
        }
        let expected = match record.kind {
            WRITE | FLUSH => STATUS_BYTES,
            // With an error, the data may count or not.
            _ if status != OK && len == STATUS_BYTES => STATUS_BYTES,
            _ => READ_BYTES,
        };
        if len != expected {
            wrong("length", expected, len);
        }
    }

    /// Changes the ledger's entry of the record's block; says so where there is no such block.
    fn with_entry(
        &mut self,
        platform: &mut impl Platform,
        record: &Slot,
        change: impl FnOnce(&mut Entry) -> bool,
    ) {
        let sensible = self.entry(record.block).is_some_and(|at| {
            // SAFETY: an entry of this share.
            unsafe {
                let mut entry = at.read_volatile();
                let sensible = change(&mut entry);
                at.write_volatile(entry);
                sensible
            }
        });
        if !sensible {
            let block = self.share.from.wrapping_add(record.block);
            self.break_down(platform, Fault::Memory { block });
        }
    }

    fn written(&mut self, platform: &mut impl Platform, record: &Slot, ok: bool) {
        if !ok {
            return self.with_entry(platform, record, |entry| entry.fail(record.place));
        }
        let state = self.state();
        state.acked = state.acked.wrapping_add(1);
        let (at, flushed) = (state.acked, state.flushed);
        self.with_entry(platform, record, |entry| {
            entry.acknowledge(record.place, at, flushed)
        });
    }

    fn been_read(&mut self, platform: &mut impl Platform, slot: u32, record: &Slot, ok: bool) {
        let found = if ok {
            self.compare(platform, slot, record)
        } else {
            None
        };
        self.with_entry(platform, record, |entry| {
            entry.read_done(&record.allowed, found);
            true
        });
        self.check_read(platform, slot, record.block, ok);
    }

    /// Compares what was read with the ledger: the generation of all of it, where it is one, and
    /// right.
    fn compare(&mut self, platform: &mut impl Platform, slot: u32, record: &Slot) -> Option<u32> {
        if record.allowed.anything() {
            return None;
        }
        // SAFETY: an entry of this share.
        let issued = unsafe { self.entry(record.block)?.read_volatile() }.issued();
        let buffer = self.queue.buffer(slot);
        let mut one = None;
        for sector in 0..SECTORS {
            // SAFETY: the buffer of a slot.
            let found = unsafe { inspect(buffer, sector) };
            let generation = found.stamp.generation;
            let expected = Stamp {
                nonce: self.state().nonce,
                block: self.share.from + record.block,
                generation,
                vcpu: self.index,
            };
            let difference = differs(&expected, sector, &found);
            let fault = if let Some((what, expected_value, found)) = difference {
                Some(Fault::Content {
                    what,
                    block: expected.block,
                    sector: sector as u32,
                    expected: expected_value,
                    found,
                })
            } else if record.allowed.permits(generation, issued) {
                None
            } else {
                Some(Fault::Stale {
                    block: expected.block,
                    sector: sector as u32,
                    allowed: record.allowed,
                    found: generation,
                })
            };
            if let Some(fault) = fault {
                self.fail(platform, fault);
                return None;
            }
            match (sector, one) {
                (0, _) => one = Some(generation),
                (_, Some(first)) if first == generation => {}
                _ => one = None,
            }
        }
        one
    }
}
