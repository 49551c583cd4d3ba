//! How long vCPU threads have waited for a processor: the part of a brownout that no tracker sees.
//!
//! Read from /proc/self/task/*/schedstat (Documentation/scheduler/sched-stats.rst: time on a
//! processor, time waiting on a run queue, timeslices). vCPU threads are known by their names.

use std::fs;
use std::time::Duration;

/// What the names of vCPU threads begin with.
pub(crate) const NAMED: &str = "vcpu";

/// Time that all vCPU threads of this process have waited, summed; zero where the kernel does not
/// tell.
pub(crate) fn vcpu_run_delay() -> Duration {
    of_vcpus(1)
}

/// Time that all vCPU threads of this process have run, summed.
pub(crate) fn vcpu_run_time() -> Duration {
    of_vcpus(0)
}

fn of_vcpus(figure: usize) -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    threads
        .flatten()
        .filter(|thread| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with(NAMED))
        })
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|stat| nth(&stat, figure))
        .sum()
}

fn nth(schedstat: &str, figure: usize) -> Option<Duration> {
    let nanos = schedstat.split_whitespace().nth(figure)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_figure_is_the_time_waited() {
        assert_eq!(nth("100 250 3\n", 1), Some(Duration::from_nanos(250)));
        assert_eq!(nth("100", 1), None);
        assert_eq!(nth("", 0), None);
    }

    #[test]
    fn only_threads_named_so_count() {
        // This process has none.
        assert_eq!(vcpu_run_delay() + vcpu_run_time(), Duration::ZERO);
    }
}
