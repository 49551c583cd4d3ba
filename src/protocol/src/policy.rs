//! The convergence policy: after every pass, one pure decision.
//!
//! What counts is the work that the guest loses, in the blackout and before it. Another pass costs
//! the guest its notifications, and shortens the blackout by what it is expected to leave less: it
//! is made while that is more. Where the blackout would be longer than allowed, passes are made as
//! long as they help; then writers are slowed down, where that is allowed and the tracker can; then
//! it gives up.

use std::time::Duration;

use crate::pages::PAGE_SIZE;

/// Limits that the operator sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest blackout to accept.
    pub max_blackout: Duration,
    /// Fewest passes before the pause; more than 1 only to measure what passes cost.
    pub min_passes: u32,
    /// Most passes before the pause, or before writers are slowed down.
    pub max_passes: u32,
    /// Passes in a row that may fail to shrink the remainder before something else is tried.
    pub patience: u32,
    /// How much of a writer's time it may be made to wait, in per cent; 0: never, 100: as much as
    /// it takes.
    pub throttle_pct: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_blackout: Duration::from_millis(300),
            min_passes: 1,
            max_passes: 50,
            patience: 6,
            throttle_pct: 0,
        }
    }
}

/// What is known when a pass has ended and the next set of pages has been harvested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyInput {
    /// Passes done.
    pub passes: u32,
    /// Pages that may have changed.
    pub remaining_pages: u64,
    /// Those of them that are to be reckoned with: as large a share as in the last pass.
    pub changed_pages: u64,
    /// Those of them that are expected, if the guest goes on as it did: fewer, the shorter the last
    /// pass was.
    pub expected_pages: u64,
    /// Those of them that had changed in the last pass, too, and will again.
    pub hot_pages: u64,
    /// The share of those that is expected to change in another pass, too.
    pub hot_again: f64,
    /// Pages that had changed in the pass just done.
    pub last_changed: u64,
    /// Its duration.
    pub last_duration: Duration,
    /// What its notifications cost the guest, as far as the tracker knows.
    pub last_stall: Duration,
    /// Time to read and compare a page that may have changed.
    pub read_per_page: Duration,
    /// Wire bytes per changed page, measured in this migration (headers and codecs included).
    pub bytes_per_page: f64,
    /// Wire throughput measured in this migration, in bytes per second; none before the first pass.
    pub throughput: Option<f64>,
    /// Costs of a switchover that do not depend on memory: round trips, state, flushes.
    pub fixed: Duration,
    /// Passes in a row that did not shrink the remainder by a tenth.
    pub not_shrinking: u32,
    /// Whether the tracker can slow writers down.
    pub can_throttle: bool,
    /// The pages that writers may make writable in a second, where they are slowed down already.
    pub throttled: Option<u64>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// One more pass while the guest runs.
    Continue {
        /// Leave hot pages for the end: the blackout is short enough with them.
        defer_hot: bool,
    },
    /// One more pass, in which writers are slowed down.
    Throttle {
        /// Pages that they may make writable in a second, all together.
        pages_per_second: u64,
    },
    /// Pause and finish.
    SwitchOver,
    /// It will not end; why, in words.
    GiveUp(String),
}

impl Decision {
    /// In a word, for reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Continue { .. } => "continue",
            Self::Throttle { .. } => "throttle",
            Self::SwitchOver => "switch-over",
            Self::GiveUp(_) => "give-up",
        }
    }
}

/// A decision, and the numbers it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighed {
    /// What to do.
    pub decision: Decision,
    /// Blackout of a switchover now.
    pub blackout: Duration,
    /// How much shorter it would be after another pass.
    pub saved: Duration,
    /// Guest work that the pass would cost.
    pub cost: Duration,
}

/// What reading and comparing pages may take while the guest is paused.
pub const READ_BUDGET: Duration = Duration::from_millis(3);
/// A pass that saves less than this is not worth its trouble.
const WORTH: Duration = Duration::from_micros(500);
/// Writers that are slowed down may go on at this share of what is sent: the remainder halves.
const THROTTLE_SHARE: f64 = 0.5;
/// Slower than this is as good as stopped: pages a second.
const SLOWEST: u64 = 256;

/// Time to send that many pages, by what was measured.
fn sending(input: &PolicyInput, pages: f64) -> Duration {
    let seconds = match input.throughput {
        Some(rate) if rate > 0.0 => pages * input.bytes_per_page / rate,
        // Nothing was ever sent: nothing to send costs nothing.
        _ if pages == 0.0 => 0.0,
        _ => f64::from(u32::MAX),
    };
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
}

/// Blackout predicted for a switchover now: fixed costs, and the changed memory over the measured
/// throughput, or the time to find out which has changed, where that is longer.
#[must_use]
pub fn predicted_blackout(input: &PolicyInput) -> Duration {
    input.fixed + sending(input, input.changed_pages as f64).max(reading(input))
}

/// Time to read what may have changed.
fn reading(input: &PolicyInput) -> Duration {
    let pages = u32::try_from(input.remaining_pages).unwrap_or(u32::MAX);
    input.read_per_page.saturating_mul(pages)
}

/// How much shorter the blackout would be after another pass: there would be fewer changed pages
/// to send, and trackers choose smaller groups where reading would not fit what it may take.
fn saved(input: &PolicyInput) -> Duration {
    let now = sending(input, input.expected_pages as f64).max(reading(input));
    let then = sending(input, left_after(input)).max(reading(input).min(READ_BUDGET));
    now.saturating_sub(then)
}

/// Of the expected pages, those that another pass is expected to leave: of those that always change
/// what did of late, and of the others as large a share as the last pass left.
fn left_after(input: &PolicyInput) -> f64 {
    let changed = input.expected_pages as f64;
    let share = (changed / input.last_changed.max(1) as f64).min(1.0);
    let hot = (input.hot_pages as f64).min(changed);
    hot * input.hot_again + (changed - hot) * share
}

/// The decision.
#[must_use]
pub fn decide(input: &PolicyInput, limits: &Limits) -> Weighed {
    let blackout = predicted_blackout(input);
    let saved = saved(input);
    let cost = input.last_stall;
    let fits = blackout <= limits.max_blackout;
    let decision = if input.passes < limits.min_passes {
        Decision::Continue { defer_hot: false }
    } else if fits {
        let pays = saved > cost + WORTH && input.passes < limits.max_passes;
        if pays {
            Decision::Continue { defer_hot: true }
        } else {
            Decision::SwitchOver
        }
    } else if input.not_shrinking < limits.patience && input.passes < limits.max_passes {
        Decision::Continue { defer_hot: false }
    } else {
        slow_down(input, limits).map_or_else(
            || Decision::GiveUp(explain(input, limits, blackout)),
            |p| Decision::Throttle {
                pages_per_second: p,
            },
        )
    };
    Weighed {
        decision,
        blackout,
        saved,
        cost,
    }
}

/// How fast writers may go on, where they may be slowed down further: at first so that the
/// remainder halves with each pass, then half as fast each time.
fn slow_down(input: &PolicyInput, limits: &Limits) -> Option<u64> {
    // Where the link itself is too long, fewer changed pages do not help.
    let helps = input.fixed <= limits.max_blackout && input.throughput.is_some();
    if !input.can_throttle || limits.throttle_pct == 0 || !helps {
        return None;
    }
    let next = match input.throttled {
        None => (pages_released(input) * THROTTLE_SHARE) as u64,
        Some(now) if now <= SLOWEST => return None,
        Some(now) => now / 2,
    };
    Some(next.max(SLOWEST))
}

/// Pages sent in a second.
fn pages_carried(input: &PolicyInput) -> f64 {
    input.throughput.unwrap_or(0.0) / input.bytes_per_page.max(1.0)
}

/// Pages that writers may make writable in a second so that what they change can be sent: where
/// pages are made writable in groups, neighbours that do not change are among them.
fn pages_released(input: &PolicyInput) -> f64 {
    let neighbours = input.remaining_pages as f64 / input.changed_pages.max(1) as f64;
    pages_carried(input) * neighbours.max(1.0)
}

fn explain(input: &PolicyInput, limits: &Limits, predicted: Duration) -> String {
    if input.fixed > limits.max_blackout {
        return format!(
            "a switchover takes {:.0} ms on this link even with nothing left to send, and at most \
             {:.0} ms are allowed (allow a longer blackout, or use a nearer destination)",
            input.fixed.as_secs_f64() * 1e3,
            limits.max_blackout.as_secs_f64() * 1e3,
        );
    }
    let dirtied = (input.changed_pages * PAGE_SIZE) as f64;
    let per_second = dirtied / input.last_duration.as_secs_f64().max(1e-6);
    let carried = pages_carried(input) * PAGE_SIZE as f64;
    let slowed = match (input.throttled, input.can_throttle, limits.throttle_pct) {
        (Some(_), ..) => ", though its writers were slowed down as far as allowed",
        (None, true, 0) => ", and slowing its writers down is not allowed (--throttle)",
        _ => "",
    };
    format!(
        "the guest changes memory as fast as it can be sent{slowed}: {:.0} MiB/s changed, {:.0} \
         MiB/s sent, {} passes; a switchover now would pause it for {:.0} ms, and at most {:.0} ms \
         are allowed (allow a longer blackout, a faster link, or a calmer guest)",
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
            changed_pages: 1000,
            expected_pages: 1000,
            hot_pages: 0,
            hot_again: 1.0,
            last_changed: 1000,
            read_per_page: Duration::ZERO,
            last_duration: Duration::from_millis(100),
            last_stall: Duration::ZERO,
            bytes_per_page: 4096.0,
            throughput: Some(1e9),
            fixed: Duration::from_millis(5),
            not_shrinking: 0,
            can_throttle: true,
            throttled: None,
        }
    }

    fn decision(input: &PolicyInput) -> Decision {
        decide(input, &Limits::default()).decision
    }

    #[test]
    fn the_prediction_is_fixed_costs_and_the_rest_over_the_throughput() {
        let predicted = predicted_blackout(&input()).as_secs_f64();
        assert!((predicted - (0.005 + 0.004096)).abs() < 1e-9);
        let nothing = PolicyInput {
            remaining_pages: 0,
            changed_pages: 0,
            expected_pages: 0,
            throughput: None,
            ..input()
        };
        assert_eq!(predicted_blackout(&nothing), Duration::from_millis(5));
        // Sent while others are read: the longer counts.
        let many = PolicyInput {
            remaining_pages: 100_000,
            read_per_page: Duration::from_nanos(500),
            ..input()
        };
        assert_eq!(predicted_blackout(&many), Duration::from_millis(55));
    }

    #[test]
    fn what_fits_switches_over_unless_a_pass_saves_more_than_it_costs() {
        assert_eq!(decision(&input()), Decision::SwitchOver);
        let shrinking = PolicyInput {
            last_changed: 100_000,
            ..input()
        };
        let go_on = Decision::Continue { defer_hot: true };
        assert_eq!(decision(&shrinking), go_on);
        // Nearly 4 ms are to be saved.
        let cheap = PolicyInput {
            last_stall: Duration::from_millis(3),
            ..shrinking
        };
        assert_eq!(decision(&cheap), go_on);
        let dear = PolicyInput {
            last_stall: Duration::from_millis(4),
            ..shrinking
        };
        assert_eq!(decision(&dear), Decision::SwitchOver);
        let tiny = PolicyInput {
            remaining_pages: 10,
            changed_pages: 10,
            expected_pages: 10,
            ..shrinking
        };
        assert_eq!(decision(&tiny), Decision::SwitchOver);
    }

    #[test]
    fn pages_that_always_change_are_no_reason_to_go_on() {
        let all_hot = PolicyInput {
            last_changed: 100_000,
            hot_pages: 1000,
            ..input()
        };
        assert_eq!(decision(&all_hot), Decision::SwitchOver);
        let weighed = decide(&all_hot, &Limits::default());
        assert_eq!(weighed.saved, Duration::ZERO);
        let fewer_each_time = PolicyInput {
            hot_again: 0.5,
            ..all_hot
        };
        assert_eq!(
            decision(&fewer_each_time),
            Decision::Continue { defer_hot: true }
        );
        let some = PolicyInput {
            hot_pages: 200,
            ..all_hot
        };
        assert_eq!(decision(&some), Decision::Continue { defer_hot: true });
    }

    #[test]
    fn a_link_that_is_too_long_is_named_as_such() {
        let far = PolicyInput {
            remaining_pages: 0,
            changed_pages: 0,
            expected_pages: 0,
            fixed: Duration::from_millis(500),
            not_shrinking: 6,
            ..input()
        };
        let Decision::GiveUp(why) = decision(&far) else {
            panic!("goes on for ever");
        };
        assert!(why.contains("takes 500 ms on this link"), "{why}");
        let limits = Limits {
            throttle_pct: 90,
            ..Limits::default()
        };
        assert!(matches!(
            decide(&far, &limits).decision,
            Decision::GiveUp(_)
        ));
    }

    #[test]
    fn passes_that_are_asked_for_are_made() {
        let limits = Limits {
            min_passes: 4,
            ..Limits::default()
        };
        for passes in 1..6 {
            let now = PolicyInput { passes, ..input() };
            let over = decide(&now, &limits).decision == Decision::SwitchOver;
            assert_eq!(over, passes >= 4, "{passes}");
        }
    }

    fn too_much() -> PolicyInput {
        PolicyInput {
            remaining_pages: 1_000_000,
            changed_pages: 1_000_000,
            expected_pages: 1_000_000,
            last_changed: 1_000_000,
            ..input()
        }
    }

    #[test]
    fn what_does_not_fit_goes_on_until_it_is_hopeless() {
        let big = too_much();
        let go_on = Decision::Continue { defer_hot: false };
        assert_eq!(decision(&big), go_on);
        for hopeless in [
            PolicyInput {
                not_shrinking: 6,
                ..big
            },
            PolicyInput { passes: 50, ..big },
        ] {
            let Decision::GiveUp(why) = decision(&hopeless) else {
                panic!("goes on for ever");
            };
            assert!(
                why.contains("300 ms") && why.contains("--throttle"),
                "{why}"
            );
        }
    }

    #[test]
    fn writers_are_slowed_down_to_half_of_what_is_sent_then_further_then_it_gives_up() {
        let limits = Limits {
            throttle_pct: 90,
            ..Limits::default()
        };
        let mut hopeless = PolicyInput {
            not_shrinking: 6,
            ..too_much()
        };
        let mut rates = Vec::new();
        while let Decision::Throttle { pages_per_second } = decide(&hopeless, &limits).decision {
            rates.push(pages_per_second);
            hopeless.throttled = Some(pages_per_second);
        }
        assert_eq!(rates[0], 122_070);
        // In groups, an eighth of which changes, eight times as many are made writable.
        let grouped = PolicyInput {
            remaining_pages: 8_000_000,
            throttled: None,
            ..hopeless
        };
        let first = decide(&grouped, &limits).decision;
        let pages_per_second = 976_562;
        assert_eq!(first, Decision::Throttle { pages_per_second });
        assert!(rates.windows(2).all(|w| w[1] < w[0]), "{rates:?}");
        assert_eq!(rates.last(), Some(&SLOWEST));
        let Decision::GiveUp(why) = decide(&hopeless, &limits).decision else {
            panic!("goes on for ever");
        };
        assert!(why.contains("slowed down as far as allowed"), "{why}");
        let cannot = PolicyInput {
            can_throttle: false,
            throttled: None,
            ..hopeless
        };
        assert!(matches!(
            decide(&cannot, &limits).decision,
            Decision::GiveUp(_)
        ));
    }
}
