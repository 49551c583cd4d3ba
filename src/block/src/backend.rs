//! What every backend can do.

use std::fmt;
use std::os::fd::BorrowedFd;

use thiserror::Error;
use vmferry_protocol::storage::{Extent, JobEnd, JobId, JobKind};

use crate::Buffers;

/// Why a disk cannot be had; in words, with what to do.
#[derive(Debug, Error)]
#[error("disk '{disk}': {why}")]
pub struct OpenError {
    /// The disk, as it was named.
    pub disk: String,
    /// What is the matter, and what to do.
    pub why: String,
}

/// What a disk is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size in bytes, a multiple of 512.
    pub bytes: u64,
    /// What offset and length of a write, a discard, zeros are a multiple of, in bytes; 512 or
    /// more. Any other may fail with `EINVAL`; reads of any multiple of 512 are taken. To be told
    /// to the guest as the disk's logical block size: content that was made for another (a
    /// partition table counts in blocks) is not understood.
    pub block_size: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// [`JobKind::Flush`] does something; otherwise everything acknowledged is stable already.
    pub flush: bool,
    /// [`JobKind::Discard`] is taken.
    pub discard: bool,
    /// [`JobKind::WriteZeroes`] is taken.
    pub write_zeroes: bool,
    /// Most bytes of one read or write.
    pub max_transfer: u32,
}

/// One thing to do. The memory belongs to the backend until its [`Completion`] was reaped.
#[derive(Debug)]
pub struct Operation {
    /// Repeated in the completion; unique among operations in flight.
    pub id: JobId,
    /// What.
    pub kind: JobKind,
    /// Where: within the disk, a multiple of 512 bytes; empty for a flush.
    pub extent: Extent,
    /// Guest memory that is written (read) by a read (write), `extent.len` bytes; empty
    /// otherwise.
    pub buffers: Buffers,
}

/// An operation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub id: JobId,
    /// How. [`JobEnd::Unknown`] only while the backend is [held](BlockBackend::hold).
    pub end: JobEnd,
}

/// Whether the host that had a disk before may still change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormerOwner {
    /// It has let go of the disk: whatever it had in flight is settled. Also where there was none.
    Gone,
    /// It has not: ask again.
    There,
    /// This storage will never know.
    Unknown,
}

/// Storage. Owned and called by one thread; no call waits for storage, whatever it does: each
/// returns within microseconds.
pub trait BlockBackend: Send + fmt::Debug {
    /// What it is like. Does not change.
    fn geometry(&self) -> &Geometry;

    /// Begins an operation. Its end comes out of [`Self::reap`], once, whatever happens.
    fn submit(&mut self, operation: Operation);

    /// Asks for the end of an operation. If it can be taken back, [`JobEnd::Cancelled`] comes out
    /// of [`Self::reap`], perhaps at once; if not, what came of it, whenever it did.
    fn cancel(&mut self, id: JobId);

    /// Takes operations that have ended. Clears [`Self::ready`].
    fn reap(&mut self, ended: &mut Vec<Completion>);

    /// Readable when there is something to reap.
    fn ready(&self) -> BorrowedFd<'_>;

    /// While held, a backend that loses its storage does not look for it again: what was in
    /// flight ends as [`JobEnd::Unknown`]. Otherwise it reconnects and asks again, so that no
    /// operation ends so.
    fn hold(&mut self, held: bool);

    /// Whether another host may use the disk while this one has operations in flight and data
    /// acknowledged: in words, why not.
    ///
    /// # Errors
    /// What stands against it, and what to do.
    fn may_move(&self) -> Result<(), String>;

    /// The disk was opened as an heir, and belongs to this host from now on; the former owner may
    /// still have it open.
    fn inherit(&mut self) {}

    /// What the storage knows of the former owner. May be asked every few milliseconds.
    fn former_owner(&mut self) -> FormerOwner {
        FormerOwner::Unknown
    }
}
