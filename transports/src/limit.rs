//! A bandwidth limit as pure arithmetic: how long to wait before the next bytes may go.
//!
//! No clock and no sleeping: the time is passed in, so that hours of sending are tested in no time.
//! [`crate::pace`] adds both.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

const NANOS: u128 = 1_000_000_000;
/// Bits × nanoseconds per second: what one byte costs in the bucket's own unit.
const BYTE: u128 = 8 * NANOS;

/// A speed, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bandwidth(NonZeroU64);

impl Bandwidth {
    /// From bits per second; `None` for zero.
    pub fn from_bits_per_second(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    /// From Mbit/s (millions of bits per second); `None` for zero, saturating above `u64::MAX`
    /// bits per second.
    pub fn from_mbit(mbit: u64) -> Option<Self> {
        Self::from_bits_per_second(mbit.saturating_mul(1_000_000))
    }

    /// In bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    /// How many whole bytes pass in `time`.
    fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.0.get()) * time.as_nanos() / BYTE;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.get();
        if bits.is_multiple_of(1_000_000) {
            write!(f, "{} Mbit/s", bits / 1_000_000)
        } else {
            write!(f, "{bits} bit/s")
        }
    }
}

/// A token bucket: at any time `t` after its first use no more than `rate × t + burst` has gone.
///
/// All sums are integers in bits × nanoseconds per second, so nothing is lost to rounding however
/// long it runs.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: u128,
    burst: u64,
    /// When all that was taken is earned, as time × rate.
    due: u128,
}

impl Bucket {
    /// What a burst lasts at the limit: longer than a timer's tick, or a sleep that ends late would
    /// lose bandwidth for good.
    const BURST_TIME: Duration = Duration::from_millis(2);
    const LEAST_BURST: u64 = 64 << 10;
    const MOST_BURST: u64 = 2 << 20;

    /// A bucket for `limit`, empty at time zero. The burst is what passes in 2 ms, at least 64 KiB
    /// and at most 2 MiB.
    pub fn new(limit: Bandwidth) -> Self {
        Self {
            rate: u128::from(limit.bits_per_second()),
            burst: limit
                .bytes_in(Self::BURST_TIME)
                .clamp(Self::LEAST_BURST, Self::MOST_BURST),
            due: 0,
        }
    }

    /// The most that goes at once after a pause, in bytes.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// How many bytes to take at a time so that they flow evenly.
    pub fn piece(&self) -> u64 {
        (self.burst / 2).min(64 << 10)
    }

    /// Takes `bytes` and returns how long after `now` they may go. Those who take first go first.
    ///
    /// `now` counts from any fixed moment. A `now` earlier than the last one only waits longer.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let now = now.as_nanos().saturating_mul(self.rate);
        let saved = u128::from(self.burst) * BYTE;
        let from = self.due.max(now.saturating_sub(saved));
        self.due = from.saturating_add(u128::from(bytes) * BYTE);
        let wait = self.due.saturating_sub(now).div_ceil(self.rate);
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}
