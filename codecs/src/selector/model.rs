//! What is known of each codec on each kind of content: processor time a byte, and ratio.

use std::time::Duration;

use crate::{CodecSpec, Content};

/// Codecs that are chosen from, beside raw.
pub const CANDIDATES: [CodecSpec; 9] = [
    CodecSpec::Lz4,
    CodecSpec::Zstd(-5),
    CodecSpec::Zstd(-1),
    CodecSpec::Zstd(1),
    CodecSpec::Zstd(3),
    CodecSpec::Zstd(5),
    CodecSpec::Zstd(9),
    CodecSpec::Brotli(2),
    CodecSpec::Brotli(5),
];
const CODECS: usize = CANDIDATES.len();
const KINDS: usize = Content::ALL.len();

/// Weight of a new measurement once there are many.
const LATEST: f64 = 0.15;
/// Measurements that say little: the first come from cold caches and new memory, and one that is a
/// little wrong may keep a codec from being chosen, and so from being measured, ever again.
const FEW: u32 = 4;
/// A codec that has more is tried again after this, and after twice as long each time, up to eight
/// seconds.
const STALE: Duration = Duration::from_millis(125);
const MOST_DOUBLINGS: u32 = 6;
/// How many times what is known a measurement may be.
const MOST_DEARER: f64 = 2.0;
/// Bounds of what one codec's measurement says about others that were not tried.
const SCALE: std::ops::RangeInclusive<f64> = 0.2..=5.0;

/// Nanoseconds of processor time for a byte, and encoded ÷ plain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) cost: f64,
    pub(super) ratio: f64,
}

impl Estimate {
    /// As it may turn out at best.
    pub(super) fn hoped(self, factor: f64) -> Self {
        of(self.cost * factor, self.ratio * factor)
    }
}

const fn of(cost: f64, ratio: f64) -> Estimate {
    Estimate { cost, ratio }
}

/// Before anything was measured, by kind and candidate: what `codecs` of the benches printed on
/// one of the test hosts for content of that kind. Measurements of the migration replace them
/// within its first chunks.
const PRIORS: [[Estimate; CODECS]; KINDS] = include!("priors.in");

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    cost: f64,
    ratio: f64,
    times: u32,
    at: Duration,
}

/// What was measured, over what is assumed.
#[derive(Clone, Debug)]
pub(super) struct Model {
    measured: [[Measured; CODECS]; KINDS],
    /// This processor's time, as a multiple of the one that the priors were measured on.
    slower: f64,
    /// By kind, how much better all codecs do than assumed: ratio = assumed ^ this.
    better: [f64; KINDS],
    times: u32,
    times_of_kind: [u32; KINDS],
}

impl Default for Model {
    fn default() -> Self {
        Self {
            measured: [[Measured::default(); CODECS]; KINDS],
            slower: 1.0,
            better: [1.0; KINDS],
            times: 0,
            times_of_kind: [0; KINDS],
        }
    }
}

impl Model {
    pub(super) fn estimate(&self, content: Content, candidate: usize) -> Estimate {
        let kind = content as usize;
        let seen = self.measured[kind][candidate];
        if seen.times > 0 {
            return of(seen.cost, seen.ratio);
        }
        let prior = PRIORS[kind][candidate];
        of(
            prior.cost * self.slower,
            prior.ratio.powf(self.better[kind]),
        )
    }

    /// Time since it was last tried on such content; none if it never was.
    pub(super) fn age(
        &self,
        content: Content,
        candidate: usize,
        now: Duration,
    ) -> Option<Duration> {
        let seen = self.measured[content as usize][candidate];
        (seen.times > 0).then(|| now.saturating_sub(seen.at))
    }

    pub(super) fn is_stale(&self, content: Content, candidate: usize, now: Duration) -> bool {
        let seen = self.measured[content as usize][candidate];
        let after = STALE * (1 << seen.times.saturating_sub(FEW).min(MOST_DOUBLINGS));
        seen.times < FEW || now.saturating_sub(seen.at) > after
    }

    /// Learns from one measurement: `cost` and `ratio` of a chunk that says `telling`, 0 to 1, of
    /// others like it.
    pub(super) fn learn(
        &mut self,
        content: Content,
        candidate: usize,
        now: Duration,
        (cost, ratio): (f64, f64),
        telling: f64,
    ) {
        let kind = content as usize;
        let prior = PRIORS[kind][candidate];
        let known = self.estimate(content, candidate);
        // Among the first few the later ones weigh more, as the first are the least like the rest.
        let average = |old: f64, new: f64, times: &mut u32| {
            *times = times.saturating_add(1);
            old + telling * LATEST.max(2.0 / (f64::from(*times) + 1.0)) * (new - old)
        };
        let bounded = |x: f64| x.clamp(*SCALE.start(), *SCALE.end());
        let slower = bounded(cost / prior.cost);
        self.slower = average(self.slower, slower, &mut self.times);
        // Where nothing shrinks, nothing is said about by how much.
        if prior.ratio < 0.95 {
            let better = bounded(ratio.clamp(1e-4, 1.0).ln() / prior.ratio.ln());
            self.better[kind] = average(self.better[kind], better, &mut self.times_of_kind[kind]);
        }
        // One that took many times as long was held up by something else.
        let cost = cost.min(known.cost * MOST_DEARER);
        let seen = &mut self.measured[kind][candidate];
        seen.ratio = average(known.ratio, ratio, &mut seen.times.clone());
        seen.cost = average(known.cost, cost, &mut seen.times);
        seen.at = now;
    }
}
