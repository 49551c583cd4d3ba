//! Processor time that compressing may take while no processor is idle: then it is taken from
//! somebody, and that is the guest before all.

use std::time::Duration;

/// Time saved up while it is not used.
const SAVED: Duration = Duration::from_millis(500);
/// How much dearer processor time gets when nearly all was used.
const DEAREST: f64 = 20.0;

/// What may be taken: a share of the processors, over half a second or so. May be overdrawn by
/// what was chosen before it was learned what it takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowance {
    /// Seconds of processor time, and most that it can be; none while as much may be taken as there is.
    left: Option<(f64, f64)>,
    at: Duration,
}

impl Allowance {
    /// So many processors may be used from here on; none is no limit.
    pub(super) fn refill(&mut self, now: Duration, processors: Option<f64>) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = processors.map(|processors| {
            let most = SAVED.as_secs_f64() * processors;
            let left = self.left.map_or(0.0, |(left, _)| left) + passed * processors;
            (left.min(most), most)
        });
    }

    /// Whether work of so many seconds may be done.
    pub(super) fn covers(&self, seconds: f64) -> bool {
        self.left.is_none_or(|(left, _)| seconds <= left)
    }

    /// How much dearer processor time is than where much is left: so that the little there is goes
    /// to codecs that make most of it.
    pub(super) fn scarcity(&self) -> f64 {
        self.left.map_or(1.0, |(left, most)| {
            (most / left.max(1e-9)).clamp(1.0, DEAREST)
        })
    }

    /// So much was used.
    pub(super) fn take(&mut self, used: Duration) {
        if let Some((left, _)) = &mut self.left {
            *left -= used.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_limit_everything_is_covered() {
        let mut allowance = Allowance::default();
        allowance.refill(MS, None);
        allowance.take(MS * 1000);
        assert!(allowance.covers(1000.0) && allowance.scarcity() == 1.0);
    }

    #[test]
    fn over_time_no_more_is_covered_than_the_share() {
        let mut allowance = Allowance::default();
        let mut used = Duration::ZERO;
        for ms in 0..10_000 {
            allowance.refill(MS * ms, Some(0.05));
            if allowance.covers(0.0007) {
                allowance.take(MS);
                used += MS;
            }
        }
        assert!(used > MS * 480 && used <= MS * 501, "{used:?}");
    }

    #[test]
    fn what_is_not_used_is_saved_for_a_moment_only() {
        let mut allowance = Allowance::default();
        allowance.refill(MS, Some(0.1));
        assert!(!allowance.covers(0.001) && allowance.scarcity() > 19.0);
        allowance.refill(MS * 60_000, Some(0.1));
        assert!(allowance.covers(0.05) && !allowance.covers(0.051));
        assert!(allowance.scarcity() < 1.01);
        // Time that goes back is none.
        allowance.refill(MS, Some(0.1));
        assert!(!allowance.covers(0.051));
    }
}
