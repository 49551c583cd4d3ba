//! This process's threads as the kernel tells of them, in /proc/self/task.

use std::fs;
use std::time::Duration;

/// What the names of vCPU threads begin with.
pub(super) const VCPU: &str = "vcpu";

/// Times of a thread, or of several, since they began (Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// On a processor.
    pub(crate) ran: Duration,
    /// Waiting for one: the part of a brownout that no tracker sees.
    pub(crate) waited: Duration,
}

/// Times of all vCPU threads, summed; zero where the kernel does not tell.
pub(crate) fn vcpus() -> Times {
    named(VCPU).1
}

/// How many threads there are whose names begin so, and their times, summed.
pub(crate) fn named(prefix: &str) -> (usize, Times) {
    let all = numbers().into_iter();
    let these = all.filter(|&tid| name(tid).is_some_and(|name| name.starts_with(prefix)));
    these
        .filter_map(times)
        .fold((0, Times::default()), |(count, sum), one| {
            let ran = sum.ran + one.ran;
            let waited = sum.waited + one.waited;
            (count + 1, Times { ran, waited })
        })
}

/// The threads' numbers.
pub(super) fn numbers() -> Vec<i32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

/// A thread's name.
pub(super) fn name(tid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/self/task/{tid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// A thread's times.
pub(super) fn times(tid: i32) -> Option<Times> {
    let schedstat = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
    parsed(&schedstat)
}

/// The number of the processor that a thread ran on last.
pub(super) fn processor(tid: i32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
    processor_in(&stat)
}

/// Whether a thread runs, or wants to.
pub(super) fn is_runnable(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
    stat.is_ok_and(|stat| state_in(&stat) == Some("R"))
}

/// Time on a processor, time on a run queue, timeslices.
fn parsed(schedstat: &str) -> Option<Times> {
    let mut figures = schedstat.split_whitespace();
    let mut next = || Some(Duration::from_nanos(figures.next()?.parse().ok()?));
    Some(Times {
        ran: next()?,
        waited: next()?,
    })
}

/// The third field of /proc/PID/stat.
fn state_in(stat: &str) -> Option<&str> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().next()
}

/// The 39th field of /proc/PID/stat (man proc_pid_stat); the second, in brackets, may have anything
/// in it.
fn processor_in(stat: &str) -> Option<usize> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_figure_is_the_time_it_ran_and_the_second_the_time_it_waited() {
        let ns = Duration::from_nanos;
        let times = Times {
            ran: ns(100),
            waited: ns(250),
        };
        assert_eq!(parsed("100 250 3\n"), Some(times));
        assert_eq!((parsed("100"), parsed("")), (None, None));
    }

    #[test]
    fn the_processor_is_found_whatever_the_thread_is_called() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b (c) {}", fields.join(" "));
        assert_eq!(processor_in(&stat), Some(39));
        assert_eq!(processor_in("7 (a"), None);
        assert_eq!(state_in("7 (a) R (c) S 4"), Some("S"));
    }

    #[test]
    fn this_thread_is_among_them_and_is_no_vcpu() {
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        assert!(numbers().contains(&me));
        assert!(name(me).is_some() && times(me).is_some() && processor(me).is_some());
        assert!(is_runnable(me));
        assert_eq!(vcpus(), Times::default());
        // The kernel may not have counted yet what it ran.
        assert!(named(&name(me).unwrap()).0 >= 1);
    }
}
