//! The convergence policy: after every pass, one pure decision.

use std::time::Duration;

use crate::pages::PAGE_SIZE;

/// Limits that the operator sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest blackout to accept.
    pub max_blackout: Duration,
    /// Most passes before the pause.
    pub max_passes: u32,
    /// Passes in a row that may fail to shrink the remainder before giving up.
    pub patience: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_blackout: Duration::from_millis(300),
            max_passes: 50,
            patience: 6,
        }
    }
}

/// What is known when a pass has ended and the next set of pages has been harvested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyInput {
    /// Passes done.
    pub passes: u32,
    /// Pages to send now.
    pub remaining_pages: u64,
    /// Pages of the pass just done.
    pub last_pages: u64,
    /// Its duration.
    pub last_duration: Duration,
    /// Wire bytes per page of memory, measured in this migration (headers and codecs included).
    pub bytes_per_page: f64,
    /// Wire throughput measured in this migration, in bytes per second; none before the first pass.
    pub throughput: Option<f64>,
    /// Costs of a switchover that do not depend on memory: round trips, state, flushes.
    pub fixed: Duration,
    /// Passes in a row that did not shrink the remainder by a tenth.
    pub not_shrinking: u32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// One more pass while the guest runs.
    Continue,
    /// Pause and finish.
    SwitchOver,
    /// It will not end; why, in words.
    GiveUp(String),
}

/// Blackout predicted for a switchover now: fixed costs, and the remaining memory over the
/// measured throughput.
#[must_use]
pub fn predicted_blackout(input: &PolicyInput) -> Duration {
    let bytes = input.remaining_pages as f64 * input.bytes_per_page;
    let seconds = match input.throughput {
        Some(rate) if rate > 0.0 => bytes / rate,
        // Nothing was ever sent: nothing to send costs nothing.
        _ if input.remaining_pages == 0 => 0.0,
        _ => f64::from(u32::MAX),
    };
    input.fixed + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
}

/// The decision.
#[must_use]
pub fn decide(input: &PolicyInput, limits: &Limits) -> Decision {
    let predicted = predicted_blackout(input);
    let fits = predicted <= limits.max_blackout;
    let sending = predicted.saturating_sub(input.fixed);
    // Even where it fits, a short pass that halves a noticeable rest is worth its time.
    let pays = sending > Duration::from_millis(1)
        && input.remaining_pages * 2 < input.last_pages
        && input.passes < limits.max_passes;
    if fits && !pays {
        return Decision::SwitchOver;
    }
    let hopeless = input.not_shrinking >= limits.patience;
    if !fits && (hopeless || input.passes >= limits.max_passes) {
        return Decision::GiveUp(explain(input, limits, predicted));
    }
    Decision::Continue
}

fn explain(input: &PolicyInput, limits: &Limits, predicted: Duration) -> String {
    let dirtied = (input.remaining_pages * PAGE_SIZE) as f64;
    let per_second = dirtied / input.last_duration.as_secs_f64().max(1e-6);
    let carried =
        input.throughput.unwrap_or(0.0) * PAGE_SIZE as f64 / input.bytes_per_page.max(1.0);
    format!(
        "the guest changes memory as fast as it can be sent: {:.0} MiB/s changed, {:.0} MiB/s \
         sent, {} passes; a switchover now would pause it for {:.0} ms, and at most {:.0} ms are \
         allowed (allow a longer blackout, a faster link, or a calmer guest)",
        per_second / f64::from(1 << 20),
        carried / f64::from(1 << 20),
        input.passes,
        predicted.as_secs_f64() * 1e3,
        limits.max_blackout.as_secs_f64() * 1e3,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> PolicyInput {
        PolicyInput {
            passes: 2,
            remaining_pages: 1000,
            last_pages: 1500,
            last_duration: Duration::from_millis(100),
            bytes_per_page: 4096.0,
            throughput: Some(1e9),
            fixed: Duration::from_millis(5),
            not_shrinking: 0,
        }
    }

    #[test]
    fn the_prediction_is_fixed_costs_and_the_rest_over_the_throughput() {
        let predicted = predicted_blackout(&input()).as_secs_f64();
        assert!((predicted - (0.005 + 0.004096)).abs() < 1e-9);
        let nothing = PolicyInput {
            remaining_pages: 0,
            throughput: None,
            ..input()
        };
        assert_eq!(predicted_blackout(&nothing), Duration::from_millis(5));
    }

    #[test]
    fn what_fits_switches_over_unless_a_pass_pays() {
        let limits = Limits::default();
        assert_eq!(decide(&input(), &limits), Decision::SwitchOver);
        let shrinking = PolicyInput {
            last_pages: 100_000,
            ..input()
        };
        assert_eq!(decide(&shrinking, &limits), Decision::Continue);
        let tiny = PolicyInput {
            remaining_pages: 10,
            ..shrinking
        };
        assert_eq!(decide(&tiny, &limits), Decision::SwitchOver);
    }

    #[test]
    fn what_does_not_fit_goes_on_until_it_is_hopeless() {
        let limits = Limits::default();
        let big = PolicyInput {
            remaining_pages: 1_000_000,
            last_pages: 1_000_000,
            ..input()
        };
        assert_eq!(decide(&big, &limits), Decision::Continue);
        for hopeless in [
            PolicyInput {
                not_shrinking: 6,
                ..big
            },
            PolicyInput { passes: 50, ..big },
        ] {
            let Decision::GiveUp(why) = decide(&hopeless, &limits) else {
                panic!("goes on for ever");
            };
            assert!(why.contains("300 ms"), "{why}");
        }
    }
}
