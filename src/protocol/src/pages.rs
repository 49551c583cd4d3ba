//! Pages and ranges of pages: the only way the core talks about guest RAM.
//!
//! Nothing here holds page contents.

use serde::{Deserialize, Serialize};

/// Bytes in a guest page (x86 base page).
pub const PAGE_SIZE: u64 = 4096;

/// A run of guest pages: `count` pages from guest frame number `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First guest frame number (guest-physical address ÷ [`PAGE_SIZE`]).
    pub start: u64,
    /// Number of pages.
    pub count: u64,
}

impl PageRange {
    /// A run of `count` pages from frame `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Self {
        Self { start, count }
    }

    /// One past the last frame; saturates, so that hostile input cannot overflow it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// Length in bytes; saturates.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE)
    }

    /// Guest-physical address of the first byte; saturates.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        self.start.saturating_mul(PAGE_SIZE)
    }

    /// Whether frame `gfn` lies in the run.
    #[must_use]
    pub const fn contains(&self, gfn: u64) -> bool {
        gfn >= self.start && gfn < self.end()
    }

    /// The frames of the run.
    pub fn frames(&self) -> std::ops::Range<u64> {
        self.start..self.end()
    }
}
