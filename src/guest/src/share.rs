//! What one vCPU has of something that all share out.

/// Pages or blocks `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The first.
    pub from: u64,
    /// One past the last.
    pub to: u64,
}

impl Share {
    /// Part `index` of `n` of `[from, to)`: together they are all of it.
    #[must_use]
    pub const fn of(from: u64, to: u64, index: u64, n: u64) -> Self {
        let len = to - from;
        Self {
            from: from + len * index / n,
            to: from + len * (index + 1) / n,
        }
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.to - self.from
    }

    /// Whether it is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.to == self.from
    }
}
