//! What a vCPU's driver remembers between two steps, in the page of states, and its counters,
//! which the VMM may read there.

use super::layout::STATES;

/// Size of a [`State`]: eight of them are in the page's second half.
const STATE_BYTES: usize = 256;

/// A driver's state. All zero: from the beginning.
#[repr(C, align(256))]
#[derive(Debug)]
pub(super) struct State {
    pub(super) counters: Counters,
    /// Slots in flight, a bit for each; those of them that are writes.
    pub(super) busy: u64,
    pub(super) writing: u64,
    /// Indices of the rings, in their low 16 bits.
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) random: u64,
    /// See [`Stamp::nonce`](super::stamp::Stamp::nonce).
    pub(super) nonce: u64,
    /// Writes issued since the last flush was.
    pub(super) unflushed: u64,
    /// Writes acknowledged, and how many of them were when the latest flush that is done was
    /// issued.
    pub(super) acked: u64,
    pub(super) flushed: u64,
    /// TSC at which the rate allows the next request.
    pub(super) due: u64,
    /// Completions that the VMM has been told of.
    pub(super) told: u64,
    /// Whether the queue can be used no more.
    pub(super) broken: u64,
    pub(super) failures: u64,
    pub(super) check: Check,
}

/// A check of all blocks, under way.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Next block of the share to read.
    pub(super) next: u64,
    /// Whether it waits for all that is in flight.
    pub(super) settled: u64,
    /// Slots of its reads in flight, and of those that gave an error and are read again.
    pub(super) reading: u64,
    pub(super) again: u64,
    /// Reads that gave an error.
    pub(super) errors: u64,
    /// TSC at its beginning, and when something last came back.
    pub(super) began: u64,
    pub(super) moved: u64,
    /// Completions by then.
    pub(super) completed: u64,
}

/// Disk requests of a vCPU that have come back, by kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads without an error.
    pub reads: u64,
    /// Writes without an error.
    pub writes: u64,
    /// Flushes without an error.
    pub flushes: u64,
    /// Requests with an error.
    pub errors: u64,
}

impl Counters {
    /// Those of vCPU `index`, from the arena's first page; none where that is not all there.
    #[must_use]
    pub fn of(states: &[u8], index: u32) -> Option<Self> {
        let at = STATES as usize + index as usize * STATE_BYTES;
        let mut words = states.get(at..at + size_of::<Self>())?.chunks_exact(8);
        let mut next = || {
            let word = words.next()?;
            word.first_chunk().copied().map(u64::from_le_bytes)
        };
        Some(Self {
            reads: next()?,
            writes: next()?,
            flushes: next()?,
            errors: next()?,
        })
    }

    /// All of them.
    #[must_use]
    pub const fn completed(&self) -> u64 {
        self.reads
            .wrapping_add(self.writes)
            .wrapping_add(self.flushes)
            .wrapping_add(self.errors)
    }
}

const _: () = assert!(size_of::<State>() == STATE_BYTES);
