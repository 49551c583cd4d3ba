//! What the guest itself lost, from its heartbeats: pure arithmetic over time stamps.
//!
//! A heartbeat says how much work a vCPU had done, and is stamped on arrival by the clock of the
//! host (CLOCK_MONOTONIC), because the guest's own clock cannot see its pause. Both sides' stamps
//! must be of one clock; across hosts the caller shifts them by the measured offset first.

use serde::{Deserialize, Serialize};
use vmferry_machine::Beat;

/// The moments of a migration, in nanoseconds of the same clock as the heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// The migration began.
    pub start_ns: u64,
    /// The source began to pause the vCPUs.
    pub pause_ns: u64,
    /// The destination had resumed them.
    pub resume_ns: u64,
}

/// The guest's part of the report. Rates are in units of work per second, over all vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Rate in the time before the migration, at most one second of it.
    pub work_rate_before: Option<f64>,
    /// Rate from the start to the pause.
    pub work_rate_during: Option<f64>,
    /// Rate in the first second after the move.
    pub work_rate_after: Option<f64>,
    /// Share of speed lost from the start to the pause, in per cent of the rate before.
    pub brownout_pct: Option<f64>,
    /// Work lost from the start to the pause, in milliseconds of the rate before.
    pub brownout_lost_ms: Option<f64>,
    /// Work lost from the start to one second after the move, in milliseconds of the rate before.
    pub lost_work_ms: Option<f64>,
    /// The guest's verdict on its memory: `OK`, `FAIL page N`, or none where nobody asked.
    pub verify: Option<String>,
}

const SECOND_NS: u64 = 1_000_000_000;

/// A vCPU's work at time `t`, between heartbeats by interpolation; none outside of them.
fn work_at(beats: &[Beat], t: u64) -> Option<f64> {
    let after = beats.partition_point(|b| b.time_ns < t);
    let next = beats.get(after)?;
    if next.time_ns == t {
        return Some(next.work as f64);
    }
    let last = beats.get(after.checked_sub(1)?)?;
    let span = (next.time_ns - last.time_ns) as f64;
    let part = (t - last.time_ns) as f64 / span;
    Some(last.work as f64 + part * (next.work as f64 - last.work as f64))
}

/// Work of all vCPUs in `[from, to]`; `frozen` is the pause, inside which nobody works, so that
/// work next to it is not smeared into it.
fn work_between(vcpus: &[Vec<Beat>], from: u64, to: u64, frozen: (u64, u64)) -> Option<f64> {
    let mut sum = 0.0;
    for beats in vcpus {
        let at = |t: u64| {
            if t <= frozen.0 || t >= frozen.1 {
                let side: &[Beat] = if t <= frozen.0 {
                    &beats[..beats.partition_point(|b| b.time_ns <= frozen.0)]
                } else {
                    &beats[beats.partition_point(|b| b.time_ns < frozen.1)..]
                };
                // Beyond the last beat of a side at most one interval is unknown: hold.
                work_at(side, t).or_else(|| {
                    if t <= frozen.0 {
                        side.last()
                            .filter(|b| b.time_ns <= t)
                            .map(|b| b.work as f64)
                    } else {
                        side.first()
                            .filter(|b| b.time_ns >= t)
                            .map(|b| b.work as f64)
                    }
                })
            } else {
                work_at(beats, t)
            }
        };
        sum += at(to)? - at(from)?;
    }
    Some(sum)
}

/// The guest's part of the report from each vCPU's heartbeats (ascending in time, source's and
/// destination's joined). Figures that the heartbeats do not cover are none.
#[must_use]
pub fn guest_report(vcpus: &[Vec<Beat>], m: Moments) -> GuestReport {
    let frozen = (m.pause_ns, m.resume_ns);
    let first = vcpus
        .iter()
        .filter_map(|b| b.first())
        .map(|b| b.time_ns)
        .max();
    let rate = |from: u64, to: u64| {
        let seconds = to.checked_sub(from).filter(|&d| d > 0)? as f64 / SECOND_NS as f64;
        Some(work_between(vcpus, from, to, frozen)? / seconds)
    };
    if vcpus.is_empty() {
        return GuestReport::default();
    }
    let before = first
        .map(|first| first.max(m.start_ns.saturating_sub(SECOND_NS)))
        .and_then(|from| rate(from, m.start_ns))
        .filter(|&r| r > 0.0);
    let during = rate(m.start_ns, m.pause_ns);
    let after_end = m.resume_ns + SECOND_NS;
    let lost = |from: u64, to: u64| {
        let full = (to.checked_sub(from)?) as f64 / 1e6;
        let done = work_between(vcpus, from, to, frozen)? / before? * 1e3;
        Some((full - done).max(0.0))
    };
    GuestReport {
        work_rate_before: before,
        work_rate_during: during,
        work_rate_after: rate(m.resume_ns, after_end),
        brownout_pct: before
            .zip(during)
            .map(|(b, d)| ((1.0 - d / b) * 100.0).max(0.0)),
        brownout_lost_ms: lost(m.start_ns, m.pause_ns),
        lost_work_ms: lost(m.start_ns, after_end),
        verify: None,
    }
}

/// The longest silence of any vCPU that overlaps the switchover, in milliseconds.
#[must_use]
pub fn blackout_of_guest_ms(vcpus: &[Vec<Beat>], m: Moments) -> Option<f64> {
    vcpus
        .iter()
        .flat_map(|beats| beats.windows(2))
        .filter(|pair| pair[1].time_ns >= m.pause_ns && pair[0].time_ns <= m.resume_ns)
        .map(|pair| (pair[1].time_ns - pair[0].time_ns) as f64 / 1e6)
        .max_by(f64::total_cmp)
}

/// Whether a vCPU's work ever went backward: then it woke up with older memory than it had.
#[must_use]
pub fn work_went_backward(vcpus: &[Vec<Beat>]) -> bool {
    vcpus
        .iter()
        .any(|beats| beats.windows(2).any(|pair| pair[1].work < pair[0].work))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// 1,000 units a second, `slow` × as fast from `start` to `pause`, none until `resume`.
    fn beats(m: Moments, slow: f64, end: u64) -> Vec<Beat> {
        let mut work = 0.0;
        let mut out = Vec::new();
        for t in (0..=end).step_by(MS as usize) {
            if t <= m.pause_ns || t >= m.resume_ns {
                out.push(Beat {
                    time_ns: t,
                    work: work as u64,
                });
            }
            work += if t >= m.start_ns && t < m.pause_ns {
                1000.0 * slow
            } else if t >= m.pause_ns && t < m.resume_ns {
                0.0
            } else {
                1000.0
            };
        }
        out
    }

    const M: Moments = Moments {
        start_ns: 2000 * MS,
        pause_ns: 3000 * MS,
        resume_ns: 3010 * MS,
    };

    #[test]
    fn lost_work_is_the_brownout_and_the_blackout() {
        let vcpus = vec![beats(M, 0.75, 5000 * MS), beats(M, 0.75, 5000 * MS)];
        let r = guest_report(&vcpus, M);
        let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < b.abs() * 0.01 + 0.01;
        assert!(near(r.work_rate_before, 2e6), "{r:?}");
        assert!(near(r.work_rate_during, 1.5e6), "{r:?}");
        assert!(near(r.work_rate_after, 2e6), "{r:?}");
        assert!(near(r.brownout_pct, 25.0), "{r:?}");
        assert!(near(r.brownout_lost_ms, 250.0), "{r:?}");
        assert!(near(r.lost_work_ms, 260.0), "{r:?}");
        assert!(near(blackout_of_guest_ms(&vcpus, M), 10.0));
    }

    #[test]
    fn what_the_heartbeats_do_not_cover_is_none() {
        let short = vec![beats(M, 1.0, 3500 * MS)];
        let r = guest_report(&short, M);
        assert!(r.work_rate_after.is_none() && r.lost_work_ms.is_none());
        assert!(r.brownout_lost_ms.is_some());
        assert_eq!(guest_report(&[], M), GuestReport::default());
        assert_eq!(blackout_of_guest_ms(&[], M), None);
    }

    #[test]
    fn work_that_goes_backward_is_noticed() {
        let beat = |time_ns, work| Beat { time_ns, work };
        assert!(work_went_backward(&[vec![beat(1, 5), beat(2, 4)]]));
        assert!(!work_went_backward(&[vec![beat(1, 5), beat(2, 5)]]));
    }
}
