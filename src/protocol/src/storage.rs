//! Storage jobs as both sides of a migration speak of them: names, ranges, fates.
//!
//! A job is one request of the guest to one of its disks. At switchover the source cancels what
//! is in flight and does not wait: a write whose fate it does not know yet is *unsettled*, and
//! whatever overlaps it waits at the destination until it is settled. Data never enters this
//! crate. docs/storage-io.md tells the whole story.

use serde::{Deserialize, Serialize};

/// Most jobs of one machine that a handover may carry: 32 disks with eight queues of 256 entries.
pub const MAX_JOBS: usize = 65_536;

/// Names a job on its disk, for as long as its guest lives: a number is never used again, here or
/// after a migration. A guest that is booted anew begins above those whose ranges are closed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct JobId(pub u64);

/// Names a job on its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey {
    /// Index of the disk in the machine's configuration.
    pub disk: u16,
    /// The job.
    pub job: JobId,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobKind {
    /// Disk to guest RAM.
    Read,
    /// Guest RAM to disk.
    Write,
    /// Everything acknowledged before is to be on stable storage.
    Flush,
    /// The range's content is of no interest any more.
    Discard,
    /// The range is to read as zeros.
    WriteZeroes {
        /// Whether its space may be given back.
        unmap: bool,
    },
}

impl JobKind {
    /// Whether the disk holds something else after it. Only such a job can do harm when it lands
    /// late.
    #[must_use]
    pub const fn changes_disk(self) -> bool {
        match self {
            Self::Write | Self::Discard | Self::WriteZeroes { .. } => true,
            Self::Read | Self::Flush => false,
        }
    }
}

/// Bytes `[offset, offset + len)` of a disk; none for a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    /// The bytes from `offset` on.
    #[must_use]
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// First byte after it. Ranges from outside are [checked](Self::is_within) before.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether both have a byte in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.len > 0 && other.len > 0 && self.offset < other.end() && other.offset < self.end()
    }

    /// Whether it lies within a disk of `bytes`.
    #[must_use]
    pub const fn is_within(&self, bytes: u64) -> bool {
        match self.offset.checked_add(self.len) {
            Some(end) => end <= bytes,
            None => false,
        }
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobEnd {
    /// As asked.
    Done,
    /// The storage has refused it: a number of errno. The range may hold anything in between.
    Failed(i32),
    /// It was taken back: it has not touched the disk, and will not.
    Cancelled,
    /// It may or may not have happened; it will not happen any more (the storage has closed the
    /// session in which it was asked for).
    Unknown,
}

/// What the source knows of a job that it hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fate {
    /// It does not touch the disk any more (or only reads it, and nobody listens): it can be
    /// reissued at once.
    Cancelled,
    /// It may still change the disk, any time: nothing that overlaps it may be issued before it
    /// is settled.
    Unsettled,
}

/// A job that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which.
    pub key: JobKey,
    /// What it does.
    pub kind: JobKind,
    /// Where.
    pub extent: Extent,
    /// What is known of it.
    pub fate: Fate,
}

/// An unsettled job is settled: it will not change the disk any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settlement {
    /// Which.
    pub key: JobKey,
    /// How it ended.
    pub end: JobEnd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_overlap_only_where_they_share_a_byte() {
        let at = Extent::new;
        assert!(at(0, 10).overlaps(&at(9, 1)));
        assert!(!at(0, 10).overlaps(&at(10, 5)));
        assert!(!at(5, 0).overlaps(&at(0, 10)));
        assert!(at(4, 2).overlaps(&at(0, 100)));
        assert!(at(0, 8).is_within(8) && !at(1, 8).is_within(8));
        assert!(!at(u64::MAX, 2).is_within(u64::MAX));
    }
}
