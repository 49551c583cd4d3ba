//! How large groups are: one pure decision a pass.
//!
//! A large group costs the guest one notification for many pages, and the migration the reading
//! and comparing of those that did not change. Huge pages are split by groups smaller than they
//! are, which costs the guest more than notifications do: so groups stay huge while the reading
//! fits, and only a last pass that would not fit its budget makes them smaller.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// Largest group: 32 MiB.
pub const MAX_ORDER: u8 = 13;
/// A huge page's.
const HUGE: u8 = 9;
/// Smallest that the policy itself chooses: 64 KiB. Below it, notifications cost more than the
/// reading they save.
const SMALLEST: u8 = 4;

/// A group's size, as a power of two of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u8);

impl Order {
    /// A huge page: 2 MiB.
    pub const HUGE: Self = Self(HUGE);
    /// A page.
    pub const PAGE: Self = Self(0);

    /// Of `log2`; the largest where that is larger.
    #[must_use]
    pub const fn from_log2(log2: u8) -> Self {
        Self(if log2 > MAX_ORDER { MAX_ORDER } else { log2 })
    }

    /// The power of two.
    #[must_use]
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Pages in a group.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages() * 4 {
            kib if kib >= 1024 => write!(f, "{}m", kib / 1024),
            kib => write!(f, "{kib}k"),
        }
    }
}

/// How the size of groups is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupSize {
    /// By [`next_order`], pass by pass.
    #[default]
    Auto,
    /// Always this.
    Fixed(Order),
}

/// Not a size of a group.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a group size; choose auto, or a power of two from 4k to 32m, as in 64k or 2m"
)]
pub struct BadGroupSize(String);

impl FromStr for GroupSize {
    type Err = BadGroupSize;

    fn from_str(text: &str) -> Result<Self, BadGroupSize> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let bad = || BadGroupSize(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let (digits, kib) = match (lower.strip_suffix('k'), lower.strip_suffix('m')) {
            (Some(digits), _) => (digits, 1u64),
            (_, Some(digits)) => (digits, 1024),
            _ => return Err(bad()),
        };
        let pages = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(kib))
            .filter(|kib| kib % 4 == 0)
            .map(|kib| kib / 4)
            .filter(|pages| pages.is_power_of_two() && *pages <= 1 << MAX_ORDER)
            .ok_or_else(bad)?;
        Ok(Self::Fixed(Order(pages.trailing_zeros() as u8)))
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(order) => order.fmt(f),
        }
    }
}

/// What is known when a pass begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SizeInput {
    /// Passes begun, this one included.
    pub pass: u32,
    /// Size of the groups so far.
    pub order: Order,
    /// Pages to read in this pass.
    pub pages: u64,
    /// Pages of the last pass that had changed, of those that were read.
    pub changed: u64,
    /// Pages read in the last pass; 0 where nobody compares.
    pub read: u64,
    /// Time to read and compare a page, as measured.
    pub per_page: Duration,
    /// What the reading in the blackout may take.
    pub budget: Duration,
}

/// The size of groups protected from here on.
#[must_use]
pub fn next_order(input: &SizeInput) -> Order {
    // The first pass reads everything once, and nobody knows the guest yet.
    if input.pass <= 1 || input.read == 0 {
        return input.order;
    }
    let pages = u32::try_from(input.pages).unwrap_or(u32::MAX);
    let reading = input.per_page * pages;
    let needless = input.read.saturating_sub(input.changed) * 8 > input.read * 7;
    if reading > input.budget && needless {
        // Fewer neighbours to read in vain: an eighth at a time.
        return Order(
            input
                .order
                .0
                .saturating_sub(3)
                .max(SMALLEST.min(input.order.0)),
        );
    }
    if reading * 4 < input.budget && input.order < Order::HUGE {
        return Order(input.order.0 + 1);
    }
    input.order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> SizeInput {
        SizeInput {
            pass: 3,
            order: Order::HUGE,
            pages: 50_000,
            changed: 100,
            read: 50_000,
            per_page: Duration::from_nanos(600),
            budget: Duration::from_millis(3),
        }
    }

    #[test]
    fn sizes_are_read_from_what_is_written() {
        for text in ["4k", "64k", "2m", "32m", "auto"] {
            assert_eq!(text.parse::<GroupSize>().unwrap().to_string(), text);
        }
        assert_eq!("2M".parse(), Ok(GroupSize::Fixed(Order::HUGE)));
        for bad in ["", "3k", "2k", "64m", "12k", "m", "-4k", "4"] {
            assert!(bad.parse::<GroupSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_stay_huge_while_the_reading_fits_or_is_needed() {
        assert_eq!(next_order(&SizeInput { pass: 1, ..input() }), Order::HUGE);
        let few = SizeInput {
            pages: 4_000,
            ..input()
        };
        assert_eq!(next_order(&few), Order::HUGE);
        let dense = SizeInput {
            changed: 50_000,
            ..input()
        };
        assert_eq!(next_order(&dense), Order::HUGE);
        let blind = SizeInput { read: 0, ..input() };
        assert_eq!(next_order(&blind), Order::HUGE);
    }

    #[test]
    fn groups_shrink_where_reading_them_is_mostly_in_vain_and_come_back() {
        let mut order = Order::HUGE;
        for expected in [6, 4, 4] {
            order = next_order(&SizeInput { order, ..input() });
            assert_eq!(order.log2(), expected);
        }
        let idle = SizeInput {
            order,
            pages: 100,
            ..input()
        };
        assert_eq!(next_order(&idle).log2(), 5);
        // A size below the policy's own smallest, fixed by an operator once, is not enlarged by a shrink.
        let tiny = SizeInput {
            order: Order::PAGE,
            ..input()
        };
        assert_eq!(next_order(&tiny), Order::PAGE);
    }
}
