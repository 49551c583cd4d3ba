//! Guest time across a move. While a guest moves, its clocks go forward by the real time that
//! passes, which both hosts read from CLOCK_REALTIME; never backward.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::workload::monotonic_ns;

/// Longest gap that is believed, in nanoseconds: beyond it, one of the hosts' clocks is wrong.
const MAX_GAP_NS: u64 = 3_600_000_000_000;

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// CLOCK_REALTIME, in nanoseconds.
    pub(super) real_ns: u64,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub(super) monotonic_ns: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            real_ns: since_epoch.map_or(0, |d| d.as_nanos() as u64),
            monotonic_ns: monotonic_ns(),
        }
    }

    /// Nanoseconds since this moment.
    pub(super) fn age_ns(self) -> u64 {
        monotonic_ns().saturating_sub(self.monotonic_ns)
    }

    /// Real time that passed since `saved_at_ns`, at another host perhaps.
    pub(super) fn gap_ns(self, saved_at_ns: u64) -> u64 {
        self.real_ns.saturating_sub(saved_at_ns).min(MAX_GAP_NS)
    }
}

/// Ticks of a counter of `khz` in `ns` nanoseconds.
pub(super) fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// Counters that are within a millisecond of one another were in step, and read at slightly
/// different moments: they become equal, to the greatest. Others stay.
pub(super) fn in_step(counters: &mut [u64], khz: u32) {
    let (Some(&min), Some(&max)) = (counters.iter().min(), counters.iter().max()) else {
        return;
    };
    if max - min < u64::from(khz) {
        counters.fill(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_by_the_gap_never_backward_and_not_without_bounds() {
        let now = Moment {
            real_ns: 10_000,
            monotonic_ns: 5,
        };
        assert_eq!(now.gap_ns(4_000), 6_000);
        assert_eq!(now.gap_ns(10_001), 0);
        let far = Moment {
            real_ns: u64::MAX,
            monotonic_ns: 5,
        };
        assert_eq!(far.gap_ns(0), MAX_GAP_NS);
        assert_eq!(ticks(1_000_000_000, 2_500_000), 2_500_000_000);
        assert_eq!(
            ticks(MAX_GAP_NS, u32::MAX) / 3600,
            u64::from(u32::MAX) * 1000
        );
    }

    #[test]
    fn counters_in_step_become_equal_and_others_stay() {
        let mut near = [5_000_000, 5_000_900];
        in_step(&mut near, 1000);
        assert_eq!(near, [5_000_900; 2]);
        let mut far = [5_000_000, 5_001_000];
        in_step(&mut far, 1000);
        assert_eq!(far, [5_000_000, 5_001_000]);
        in_step(&mut [], 1000);
    }
}
