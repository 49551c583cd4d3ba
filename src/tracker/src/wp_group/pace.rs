//! When a writer that is slowed down may go on. Time is given, nothing waits here.
//!
//! All writers together make so many pages writable in a second; no writer is made to wait for
//! more than its share of time. Whoever only reads, or writes where nothing is protected, never
//! comes here.

use std::time::Duration;

use crate::Throttle;

/// Writers remembered at a time; a VM has far fewer vCPUs.
const WRITERS: usize = 64;

/// The pace.
#[derive(Debug, Default)]
pub(super) struct Pace {
    throttle: Option<Throttle>,
    since: Duration,
    /// When the pages released so far will have been allowed.
    free_at: Duration,
    /// Writers by thread, and when each really went on last: before it was due where another's
    /// answer woke it.
    writers: Vec<(u32, Duration)>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            // Never grown while somebody waits.
            writers: Vec::with_capacity(WRITERS),
            ..Self::default()
        }
    }

    pub(super) fn set(&mut self, throttle: Option<Throttle>, now: Duration) {
        self.throttle = throttle.filter(|t| t.pages_per_second > 0);
        self.since = now;
        self.free_at = now;
        self.writers.clear();
    }

    pub(super) fn is_set(&self) -> bool {
        self.throttle.is_some()
    }

    /// When `writer`, who has come at `now`, may make `pages` pages writable. Charges for them.
    pub(super) fn due(&mut self, now: Duration, writer: u32, pages: u64) -> Duration {
        let Some(throttle) = self.throttle else {
            return now;
        };
        let price = Duration::from_secs_f64(pages as f64 / throttle.pages_per_second as f64);
        let due = self.free_at.max(now).min(self.latest(now, writer));
        self.free_at = due + price;
        due
    }

    /// When `writer`, who has come at `now`, will have waited for as much of its time as it may be
    /// made to.
    pub(super) fn latest(&self, now: Duration, writer: u32) -> Duration {
        let share = self.throttle.map_or(0, |t| u32::from(t.most_pct));
        if share >= 100 {
            return Duration::MAX;
        }
        let ran = now.saturating_sub(self.went_on(writer));
        now + ran * share / (100 - share)
    }

    /// `writer` goes on at `at`, whenever it was due.
    pub(super) fn let_go(&mut self, writer: u32, at: Duration) {
        if self.is_set() {
            self.note(writer, at);
        }
    }

    /// When `writer` was last let go; one that has not waited yet has run since the throttle was
    /// set, as far as is known.
    fn went_on(&self, writer: u32) -> Duration {
        let known = self.writers.iter().find(|(w, _)| *w == writer);
        known.map_or(self.since, |(_, at)| *at)
    }

    fn note(&mut self, writer: u32, at: Duration) {
        if let Some(known) = self.writers.iter_mut().find(|(w, _)| *w == writer) {
            known.1 = at;
        } else if self.writers.len() < WRITERS {
            self.writers.push((writer, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(pages_per_second: u64, most_pct: u8) -> Pace {
        let mut pace = Pace::new();
        let throttle = Throttle {
            pages_per_second,
            most_pct,
        };
        pace.set(Some(throttle), Duration::ZERO);
        pace
    }

    #[test]
    fn without_a_throttle_nobody_waits() {
        let mut pace = Pace::new();
        assert_eq!(pace.due(5 * MS, 1, 512), 5 * MS);
        assert!(!pace.is_set());
    }

    #[test]
    fn pages_become_writable_at_the_rate_allowed_whoever_writes() {
        let mut pace = pace(51_200, 100);
        // 512 pages take 10 ms; writers come as soon as they are let go.
        let (mut now, mut pages) = (Duration::ZERO, 0);
        while now < 1000 * MS {
            for writer in 0..3 {
                // A writer that needs no time for its 512 pages.
                now = pace.due(now, writer, 512);
                pages += 512;
            }
        }
        assert!((45_000..=56_000).contains(&pages), "{pages}");
    }

    #[test]
    fn no_writer_waits_for_more_than_its_share() {
        let mut pace = pace(1, 80);
        let mut now = pace.due(Duration::ZERO, 7, 512);
        for _ in 0..5 {
            pace.let_go(7, now);
            // Ran for 2 ms, waits for 8.
            now += 2 * MS;
            let due = pace.due(now, 7, 512);
            assert_eq!(due - now, 8 * MS);
            now = due;
        }
    }

    #[test]
    fn a_writer_that_went_on_before_it_was_due_waits_for_its_share_the_next_time() {
        let mut pace = pace(1, 80);
        let start = pace.due(Duration::ZERO, 7, 512);
        pace.let_go(7, start);
        assert_eq!(pace.due(10 * MS, 7, 512), 50 * MS);
        // Woken by another's release.
        pace.let_go(7, 12 * MS);
        // Ran for 3 ms, waits for 12.
        assert_eq!(pace.due(15 * MS, 7, 512), 27 * MS);
    }

    #[test]
    fn writers_that_come_for_the_first_time_do_not_pay_for_each_other() {
        let mut pace = pace(256, 90);
        let now = 10 * MS;
        for writer in 0..8 {
            assert!(pace.due(now, writer, 512) <= now + 90 * MS, "{writer}");
        }
    }

    #[test]
    fn a_throttle_that_is_lifted_lets_go_at_once() {
        let mut pace = pace(1, 99);
        pace.due(Duration::ZERO, 1, 512);
        pace.set(None, MS);
        assert_eq!(pace.due(2 * MS, 1, 512), 2 * MS);
    }
}
