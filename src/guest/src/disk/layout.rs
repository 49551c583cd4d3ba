//! Where the disk driver keeps what: all in guest RAM, so that it moves with the guest.
//!
//! In the page of states: the device's phase, and a [`State`](super::state::State) for each vCPU.
//! In the driver's own part of the arena: for each vCPU its virtqueue, headers, records and
//! buffers; then the ledger, an [`Entry`] for each block.

use core::mem::size_of;

use super::ledger::Entry;
use crate::params::{PAGE, Params};

/// Offset of the device's phase in the page of states.
pub(super) const PHASE: u64 = 1024;
/// Offset of the drivers' states in the page of states.
pub(super) const STATES: u64 = 2048;

/// Offsets in a vCPU's part, in bytes. Each virtqueue part has a page, as 256 descriptors need it.
pub(super) const DESCRIPTORS: u64 = 0;
pub(super) const AVAIL: u64 = PAGE;
pub(super) const USED: u64 = 2 * PAGE;
/// Request headers and status bytes, [`HEADER_BYTES`] for each slot.
pub(super) const HEADERS: u64 = 3 * PAGE;
/// What the driver notes of each slot: two pages.
pub(super) const SLOTS: u64 = 4 * PAGE;
/// A page of data for each slot.
pub(super) const BUFFERS: u64 = 6 * PAGE;
/// A header of 16 bytes, the status byte, nothing.
pub(super) const HEADER_BYTES: u64 = 32;
pub(super) const STATUS: u64 = 16;

/// The driver's part of the arena. Offsets are from its beginning, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    vcpus: u64,
    depth: u64,
    blocks: u64,
}

impl Layout {
    /// For these parameters; none where the disk is not used.
    #[must_use]
    pub const fn of(params: &Params) -> Option<Self> {
        if params.disk_depth == 0 {
            return None;
        }
        Some(Self {
            vcpus: params.vcpus,
            depth: params.disk_depth,
            blocks: params.disk_blocks,
        })
    }

    /// The part of vCPU `index`.
    #[must_use]
    pub const fn part(&self, index: u64) -> u64 {
        index * (BUFFERS + self.depth * PAGE)
    }

    /// The ledger.
    #[must_use]
    pub const fn ledger(&self) -> u64 {
        self.part(self.vcpus)
    }

    /// Size of all of it.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.ledger() + self.blocks * size_of::<Entry>() as u64
    }

    /// Entries of a virtqueue: three descriptors for each request, a power of two.
    #[must_use]
    pub const fn queue_size(&self) -> u16 {
        (self.depth * 3).next_power_of_two() as u16
    }
}
