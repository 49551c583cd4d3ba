//! Which migrations may begin, and how fast each may be. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

/// First wait of a migration that the other host has no room for; doubled with each refusal.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// One that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiting {
    id: String,
    not_before: Duration,
    refusals: u32,
}

/// Migrations away from this host: such as have begun, and such as wait. Times are since any
/// moment that stays the same.
#[derive(Debug, Default)]
pub(super) struct Admission {
    begun: BTreeSet<String>,
    /// In the order in which they came; one that was refused keeps its place.
    waiting: Vec<Waiting>,
    /// Refusals of such as have begun.
    refused: Vec<(String, u32)>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This one begins.
    Begin(String),
    /// Nothing before that moment, unless something changes.
    At(Duration),
    /// Nothing, unless something changes.
    Nothing,
}

impl Admission {
    /// `id` wants to begin.
    pub(super) fn ask(&mut self, id: &str) {
        self.waiting.push(Waiting {
            id: id.to_owned(),
            not_before: Duration::ZERO,
            refusals: 0,
        });
    }

    /// `id` has begun, whoever let it.
    pub(super) fn has_begun(&mut self, id: &str) {
        self.begun.insert(id.to_owned());
    }

    /// What may begin where `most` may be under way at once.
    pub(super) fn next(&mut self, most: usize, now: Duration) -> Next {
        if self.begun.len() >= most {
            return Next::Nothing;
        }
        if let Some(at) = self.waiting.iter().position(|w| w.not_before <= now) {
            let Waiting { id, refusals, .. } = self.waiting.remove(at);
            self.begun.insert(id.clone());
            self.refused.push((id.clone(), refusals));
            return Next::Begin(id);
        }
        let first = self.waiting.iter().map(|w| w.not_before).min();
        first.map_or(Next::Nothing, Next::At)
    }

    /// The other host has no room for `id`: it is tried again later, before those that came after.
    pub(super) fn refuse(&mut self, id: &str, now: Duration) {
        let refusals = self.end(id).unwrap_or(0);
        let wait = FIRST_WAIT.saturating_mul(1 << refusals.min(10));
        let again = Waiting {
            id: id.to_owned(),
            not_before: now + wait.min(LONGEST_WAIT),
            refusals: refusals + 1,
        };
        self.waiting.insert(0, again);
    }

    /// `id` is over, or given up, whether it had begun or not.
    pub(super) fn end(&mut self, id: &str) -> Option<u32> {
        self.begun.remove(id);
        self.waiting.retain(|w| w.id != id);
        let at = self.refused.iter().position(|(other, _)| other == id)?;
        Some(self.refused.swap_remove(at).1)
    }

    /// How many are under way, and how many wait.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.begun.len() as u32, self.waiting.len() as u32)
    }

    /// Whether `id` waits for its turn.
    pub(super) fn waits(&self, id: &str) -> bool {
        self.waiting.iter().any(|w| w.id == id)
    }
}

/// Shares `total` Mbit/s among migrations that have limits of their own; 0 is no limit, in and
/// out. What one does not use others get. Each has at least 1.
pub(super) fn shares(total: u64, own: &[u64]) -> Vec<u64> {
    if total == 0 {
        return own.to_vec();
    }
    let limit = |own: u64| if own == 0 { u64::MAX } else { own };
    let mut order: Vec<usize> = (0..own.len()).collect();
    order.sort_by_key(|&i| limit(own[i]));
    let (mut left, mut shares) = (total, vec![0; own.len()]);
    for (done, &i) in order.iter().enumerate() {
        let even = left / (own.len() - done) as u64;
        shares[i] = limit(own[i]).min(even).max(1);
        left = left.saturating_sub(shares[i]);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn begin(id: &str) -> Next {
        Next::Begin(id.to_owned())
    }

    #[test]
    fn as_many_begin_as_may_in_the_order_in_which_they_came() {
        let mut a = Admission::default();
        for id in ["1", "2", "3", "4"] {
            a.ask(id);
        }
        assert_eq!(a.next(2, ms(0)), begin("1"));
        assert_eq!(a.next(2, ms(0)), begin("2"));
        assert_eq!(a.next(2, ms(0)), Next::Nothing);
        assert_eq!(a.counts(), (2, 2));
        a.end("3");
        a.end("1");
        assert_eq!(a.next(2, ms(0)), begin("4"));
        assert_eq!(a.next(3, ms(0)), Next::Nothing);
        a.has_begun("5");
        assert_eq!(a.counts(), (3, 0));
        // A limit that was lowered ends nothing.
        assert_eq!(a.next(1, ms(0)), Next::Nothing);
    }

    #[test]
    fn one_that_is_refused_waits_longer_each_time_and_others_go_first() {
        let mut a = Admission::default();
        a.ask("1");
        a.ask("2");
        assert_eq!(a.next(1, ms(0)), begin("1"));
        a.refuse("1", ms(0));
        assert!(a.waits("1"));
        assert_eq!(a.next(1, ms(0)), begin("2"));
        a.end("2");
        assert_eq!(a.next(1, ms(1)), Next::At(ms(250)));
        let mut now = ms(250);
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(a.next(1, now), begin("1"));
            a.refuse("1", now);
            let Next::At(at) = a.next(1, now) else {
                panic!("it waits")
            };
            waits.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(
            waits,
            [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000, 15_000]
        );
        a.end("1");
        assert_eq!(a.next(1, now), Next::Nothing);
    }

    #[test]
    fn a_link_is_shared_equally_but_for_own_limits() {
        assert_eq!(shares(0, &[0, 5]), [0, 5]);
        assert_eq!(shares(100, &[0, 0]), [50, 50]);
        assert_eq!(shares(100, &[0, 10, 0]), [45, 10, 45]);
        assert_eq!(shares(100, &[1000]), [100]);
        assert_eq!(shares(2, &[0, 0, 0]), [1, 1, 1]);
        assert_eq!(shares(9, &[]), [0; 0]);
    }
}
