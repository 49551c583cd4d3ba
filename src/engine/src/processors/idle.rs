//! How many processors nobody uses, and how many this migration does: from /proc/stat and the
//! process's own times.

use std::fs;
use std::time::Duration;

use rustix::thread::CpuSet;

use super::run_delay::vcpu_run_time;

/// Ticks a second in /proc/stat: USER_HZ, which is 100 on every x86 Linux (man proc_stat).
const HZ: f64 = 100.0;

/// Counters at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Ticks in which a processor was idle.
    idle: u64,
    /// Time that this process's threads ran that are not vCPUs'.
    own: Duration,
}

impl Usage {
    /// At present, of the processors in `allowed`; none where the kernel does not tell.
    pub(crate) fn now(allowed: &CpuSet) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let idle = idle_ticks(&stat, |processor| {
            processor < CpuSet::MAX_CPU && allowed.is_set(processor)
        });
        let process = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let process = Duration::new(process.tv_sec.unsigned_abs(), process.tv_nsec as u32);
        Some(Self {
            idle,
            own: process.saturating_sub(vcpu_run_time()),
        })
    }

    /// Processors that were idle, and that this process used beside its vCPUs, in the time that
    /// has passed since `before`.
    pub(crate) fn since(&self, before: &Self, passed: Duration) -> (f64, f64) {
        let passed = passed.as_secs_f64().max(1e-3);
        let idle = self.idle.saturating_sub(before.idle) as f64 / HZ;
        let own = self.own.saturating_sub(before.own).as_secs_f64();
        (idle / passed, own / passed)
    }
}

/// The sum of `idle` and `iowait` of the `cpuN` lines that `allowed` names.
fn idle_ticks(stat: &str, allowed: impl Fn(usize) -> bool) -> u64 {
    let of_line = |line: &str| {
        let (name, figures) = line.split_once(' ')?;
        let processor = name.strip_prefix("cpu")?.parse().ok()?;
        let idle = figures.split_whitespace().skip(3).take(2);
        allowed(processor).then(|| idle.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>())
    };
    stat.lines().filter_map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_ticks_are_those_of_the_processors_that_may_be_used() {
        let stat = "cpu  9 9 9 99 9\ncpu0 1 2 3 10 5 0 0\ncpu1 1 2 3 20 0 0 0\nintr 1\n";
        assert_eq!(idle_ticks(stat, |_| true), 35);
        assert_eq!(idle_ticks(stat, |p| p == 1), 20);
        assert_eq!(idle_ticks("nonsense", |_| true), 0);
    }

    #[test]
    fn this_process_uses_what_it_uses() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let before = Usage::now(&all).unwrap();
        let mut n = 0u64;
        while Usage::now(&all).unwrap().own - before.own < Duration::from_millis(5) {
            n = std::hint::black_box(n + 1);
        }
        let (_, own) = Usage::now(&all)
            .unwrap()
            .since(&before, Duration::from_millis(10));
        assert!(own >= 0.5, "{own}");
    }
}
