//! How many processors nobody uses, how many compressors do, and who waits for one: from /proc/stat,
//! the times of this process's threads, and the host's processor pressure.

use std::fs;
use std::time::Duration;

use rustix::thread::CpuSet;

use super::priority::Helpers;
use super::threads::{self, Times};

/// Ticks a second in /proc/stat: USER_HZ, which is 100 on every x86 Linux (man proc_stat).
const HZ: f64 = 100.0;

/// Counters at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Ticks in which a processor was idle.
    idle: u64,
    /// Time that compressors ran.
    compressors: Duration,
    vcpus: Times,
    /// Time that threads of this process waited for a processor.
    waited: Duration,
    /// Time in which anybody on this host did.
    pressure: Duration,
}

/// Processors, on average over some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// That nobody used.
    pub(super) idle: f64,
    /// That compressors used.
    pub(super) compressors: f64,
    /// That vCPUs waited for.
    pub(super) vcpus_waited: f64,
    /// Part of the time in which others than this process waited for one, at least: in which
    /// somebody did, less what this process waited itself. That hides others where both wait.
    pub(super) others_waited: f64,
}

impl Usage {
    /// At present, of the processors in `allowed`; none where the kernel does not tell.
    pub(super) fn now(allowed: &CpuSet, compressors: &Helpers) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let idle = idle_ticks(&stat, |processor| {
            processor < CpuSet::MAX_CPU && allowed.is_set(processor)
        });
        Some(Self {
            idle,
            compressors: compressors.ran(),
            vcpus: threads::vcpus(),
            waited: threads::named("").1.waited,
            // Not every kernel tells.
            pressure: fs::read_to_string("/proc/pressure/cpu")
                .ok()
                .and_then(|pressure| some_waited(&pressure))
                .unwrap_or_default(),
        })
    }

    /// In the time that has passed since `before`.
    pub(super) fn since(&self, before: &Self, passed: Duration) -> Used {
        let share = |more: Duration| more.as_secs_f64() / passed.as_secs_f64().max(1e-3);
        let idle = self.idle.saturating_sub(before.idle) as f64 / HZ;
        let somebody = share(self.pressure.saturating_sub(before.pressure)).min(1.0);
        let own = share(self.waited.saturating_sub(before.waited));
        Used {
            idle: share(Duration::from_secs_f64(idle)),
            compressors: share(self.compressors.saturating_sub(before.compressors)),
            vcpus_waited: share(self.vcpus.waited.saturating_sub(before.vcpus.waited)),
            others_waited: (somebody - own).max(0.0),
        }
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

/// Time in which some task waited (Documentation/accounting/psi.rst); the kernel brings it up to
/// date every two seconds and when it is read.
fn some_waited(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    let (_, total) = some.split_once("total=")?;
    Some(Duration::from_micros(total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rustix::time::ClockId;

    use super::super::priority::ran;
    use super::*;

    #[test]
    fn idle_ticks_are_those_of_the_processors_that_may_be_used() {
        let stat = "cpu  9 9 9 99 9\ncpu0 1 2 3 10 5 0 0\ncpu1 1 2 3 20 0 0 0\nintr 1\n";
        assert_eq!(idle_ticks(stat, |_| true), 35);
        assert_eq!(idle_ticks(stat, |p| p == 1), 20);
        assert_eq!(idle_ticks("nonsense", |_| true), 0);
    }

    #[test]
    fn others_wait_where_somebody_does_and_it_is_not_this_process() {
        let pressure =
            "some avg10=1.00 avg60=0.00 avg300=0.00 total=120000\nfull avg10=0.00 total=7\n";
        let us = Duration::from_micros;
        assert_eq!(some_waited(pressure), Some(us(120_000)));
        assert_eq!((some_waited(""), some_waited("some total=x")), (None, None));
        let at = |waited, pressure| Usage {
            idle: 0,
            compressors: Duration::ZERO,
            vcpus: Times::default(),
            waited: us(waited),
            pressure: us(pressure),
        };
        let others = |own, somebody| {
            let used = at(own, somebody).since(&at(0, 0), us(200_000));
            used.others_waited
        };
        assert!((others(20_000, 120_000) - 0.5).abs() < 1e-9);
        assert_eq!((others(130_000, 120_000), others(0, 0)), (0.0, 0.0));
        // Counters that are read one after the other.
        assert!(others(0, 210_000) <= 1.0);
    }

    #[test]
    fn what_compressors_use_counts_and_what_others_do_does_not() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let passed = Duration::from_millis(10);
        let work = || {
            let began = ran(ClockId::ThreadCPUTime);
            while ran(ClockId::ThreadCPUTime) < began + passed {
                std::hint::spin_loop();
            }
        };
        let helpers = Helpers::default();
        let before = Usage::now(&all, &helpers).unwrap();
        work();
        let used = Usage::now(&all, &helpers).unwrap().since(&before, passed);
        assert_eq!(used.compressors, 0.0, "{used:?}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                helpers.join();
                let before = Usage::now(&all, &helpers).unwrap();
                work();
                let used = Usage::now(&all, &helpers).unwrap().since(&before, passed);
                // Helpers are known where they can step back and return.
                let known = !helpers.ran().is_zero();
                assert!(!known || used.compressors >= 0.9, "{used:?}");
                helpers.leave();
            });
        });
    }
}
