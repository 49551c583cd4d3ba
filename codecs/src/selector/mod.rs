//! Which codec a chunk gets: the one with which the migration ends soonest.
//!
//! Two things can be what everything waits for: the link and the compressors. Between them is a
//! queue of bounded length. With *p* for what a second of the link is worth beside one of the
//! compressors, a codec of speed *v* and ratio *r* (encoded ÷ plain), *N* compressors and a link of
//! throughput *B*, a chunk of *S* bytes costs
//!
//! ```text
//! p · r · S / B  +  (1 − p) · S / (v · N)          raw: p · S / B
//! ```
//!
//! *p* is the dual variable of the linear program in which link and compressors together carry
//! everything soonest; codecs are mixed so that both are busy all the time. Half of it is reckoned
//! from what is known, half is how full the queue is (the module `price`): a full queue is for the
//! smallest, an empty one for raw. A link that changes changes the queue, and with it the choice,
//! before it is even measured.
//!
//! A destination that has no processor to receive with makes the queue as full as a slow link does,
//! and fewer bytes help little there. It tells ([`ReceiverMeter`]); as far as it is what everything
//! waits for, a chunk costs what it gives the destination to do instead of its bytes.
//!
//! While no processor is idle, what compressing takes it takes from somebody: then it may use a
//! small share of the processors ([`Conditions::may_take`]), and what does not fit in goes raw.
//!
//! *v* and *r* are learned for each kind of content ([`Content`]); what was measured last counts
//! most. *v* is by processor time, divided by the share of a processor that compressors get.
//!
//! Pure: time, link and processors are told, nothing is measured here.

mod allowance;
mod link;
mod model;
mod price;
mod receiver;

use std::time::Duration;

use allowance::Allowance;
use link::ASSUMED;
pub use link::LinkMeter;
pub use model::CANDIDATES;
use model::{Estimate, Model};
use price::Price;
pub use receiver::ReceiverMeter;

use crate::{CodecSpec, Content};

/// Until the link is known a queue is assumed that is rather full, so that what compresses well is
/// compressed quickly. On a quick link that costs milliseconds, on a slow one raw megabytes would
/// cost seconds.
const UNMEASURED_FILL: f64 = 0.7;
/// A codec must save this share of what sending the chunk raw takes: in doubt, raw.
const MUST_SAVE: f64 = 0.05;
/// What a second of processor time is worth in seconds of the migration: a little while
/// processors are idle (heat, other users), more where none is, and more the less of it is left.
const PRICE_IDLE: f64 = 0.02;
const PRICE_BUSY: f64 = 0.3;
/// Bytes of a chunk, as most are.
const CHUNK: f64 = (64 * crate::PAGE) as f64;
/// Spare processors from which on they are there for the taking.
const SPARE: f64 = 0.25;
/// Every so many chunks, a codec may be tried that is not known to be best, with some chunks.
const TRY_EVERY: u64 = 24;
/// How much better than known a codec may turn out: more the longer ago it was tried, and most
/// where it was never tried on such content. And how much worse than the best it may be by now.
const HOPE: f64 = 0.75;
const HOPE_FADES: Duration = Duration::from_secs(4);
const HOPE_UNTRIED: f64 = 0.5;
const TRY_WITHIN: f64 = 2.0;
/// While processors are idle, a trial goes on with a codec that takes no more of a processor than this many times the cheapest.
const TRY_ON_WITHIN: f64 = 4.0;
/// A codec that encoded one of so many chunks before is warm.
const WARM: u64 = 4;
/// How much is believed of it that one takes longer which is not.
const COLD: f64 = 0.3;
/// From this price on, the link is said to be what everything waits for.
const LINK_BOUND: f64 = 0.5;
/// Compressors that get less than this share of a processor are as good as stopped.
const LEAST_SHARE: f64 = 0.02;

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Since any fixed moment.
    pub now: Duration,
    /// What the link takes, in bytes per second; none before that is known.
    pub bytes_per_second: Option<f64>,
    /// How full the queue before the link is, 0 to 1.
    pub fill: f64,
    /// Compressors that work at a time.
    pub compressors: usize,
    /// What a chunk takes one of them beside compressing.
    pub beside: Duration,
    /// Share of a processor that a compressor gets while it works, 0 to 1.
    pub share: f64,
    /// Processors of this host that nobody but compressors uses.
    pub spare: f64,
    /// Processors that compressing may take from others where none is idle, on average.
    pub may_take: f64,
    /// How far the destination is what everything waits for ([`ReceiverMeter::behind`]), 0 to 1.
    pub receiver: f64,
}

/// Why a codec was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// The link is what everything waits for: fewer bytes are there sooner.
    Link,
    /// Link and compressors are both busy; this keeps both so.
    Saves,
    /// Compressing would take longer than it saves.
    TooSlow,
    /// No processor is idle, and compressing has had what it may take from the guest.
    GuestFirst,
    /// The destination's processors are what everything waits for: decoding would take longer
    /// there than it saves.
    Receiver,
    /// There is nothing to be saved.
    Incompressible,
    /// To see how it does.
    Trial,
    /// Somebody said so.
    Fixed,
    /// The destination has an earlier version of the pages, and the difference is small.
    Difference,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Link,
        Self::Saves,
        Self::TooSlow,
        Self::GuestFirst,
        Self::Receiver,
        Self::Incompressible,
        Self::Trial,
        Self::Fixed,
        Self::Difference,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Saves => "saves",
            Self::TooSlow => "too-slow",
            Self::GuestFirst => "guest-first",
            Self::Receiver => "receiver",
            Self::Incompressible => "incompressible",
            Self::Trial => "trial",
            Self::Fixed => "fixed",
            Self::Difference => "difference",
        }
    }
}

/// A choice and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The codec.
    pub codec: CodecSpec,
    /// Why this one.
    pub why: Why,
    /// What the chunk is expected to cost, in seconds of what everything waits for.
    pub cost: f64,
    /// What it would cost raw.
    pub cost_raw: f64,
    /// What a second of the link was worth for that, 0 to 1; the rest is what one of the
    /// compressors was.
    pub link_price: f64,
}

/// Learns and chooses. One for a migration, shared by its compressors.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    model: Model,
    allowance: Allowance,
    price: Price,
    chunks: u64,
    /// The candidate that the last chunk tried.
    trying: Option<usize>,
    /// The number of the chunk that each candidate encoded last.
    used: [u64; CANDIDATES.len()],
}

impl Selector {
    /// Chooses for a chunk of `bytes` of that kind.
    pub fn choose(&mut self, content: Content, bytes: usize, at: &Conditions) -> Choice {
        self.chunks += 1;
        let size = bytes as f64;
        let link = at.bytes_per_second.unwrap_or(ASSUMED).max(1.0);
        let idle = at.spare >= SPARE;
        self.allowance
            .refill(at.now, (!idle).then_some(at.may_take));
        let processor_price = if idle { PRICE_IDLE } else { PRICE_BUSY };
        let dearer = self.allowance.scarcity();
        let compressors = at.compressors.max(1) as f64;
        // What there is for the taking they get, however little they got when there was less.
        let share = at.share.max(at.spare / compressors).clamp(LEAST_SHARE, 1.0) * compressors;
        let receiver = at.receiver.clamp(0.0, 1.0);
        // Seconds of the link, and of all compressors, for a byte.
        let loads = |receiver: f64, n: usize, cell: Estimate| {
            let there = receiver::work(CANDIDATES[n], cell.ratio);
            let carried = (1.0 - receiver) * cell.ratio + receiver * there;
            (carried / link, cell.cost * 1e-9 / share)
        };
        self.price.note(content, size);
        let at_receiver = |n, cell| loads(receiver, n, cell);
        let link_price = self.link_price(at, (link, share), idle, at_receiver);
        let raw = link_price * size / link;
        let costs_at = |processor_price: f64, receiver: f64, n: usize, cell: Estimate| {
            let (carried, compressing) = loads(receiver, n, cell);
            let pipeline = link_price * carried + (1.0 - link_price) * compressing;
            size * (pipeline + processor_price * cell.cost * 1e-9)
        };
        let costs =
            |n: usize, cell: Estimate| costs_at(processor_price * dearer, receiver, n, cell);
        let known = |n: usize| self.model.estimate(content, n);
        let affordable = |n: &usize| self.allowance.covers(size * known(*n).cost * 1e-9);
        let saves = |cost: f64| cost < raw * (1.0 - MUST_SAVE);
        let all = || 0..CANDIDATES.len();
        let best = (all().filter(affordable))
            .map(|n| (n, costs(n, known(n))))
            .filter(|(_, cost)| saves(*cost))
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        let least = best.map_or(raw, |(_, cost)| cost);
        let mut choice = Choice {
            codec: CodecSpec::Raw,
            why: Why::TooSlow,
            cost: raw,
            cost_raw: raw,
            link_price,
        };
        // One that is being tried goes on with the next chunks, however the queue is by then: caches
        // are cold in the first, and memory is new.
        let cheapest = all().map(|n| known(n).cost).fold(f64::INFINITY, f64::min);
        let open = |n: &usize| self.model.is_stale(content, *n, at.now) && affordable(n);
        let near = |n: &usize| costs(*n, known(*n)) < least * TRY_WITHIN;
        let bearable = |n: &usize| known(*n).cost < cheapest * TRY_ON_WITHIN;
        self.trying = match self.chunks.is_multiple_of(TRY_EVERY) {
            true => {
                let among = all().filter(open).filter(near);
                self.worth_a_trial(among, (content, at.now), least, costs)
            }
            false => self.trying.filter(|_| idle).filter(open).filter(bearable),
        };
        if let Some(n) = self.trying {
            choice.codec = CANDIDATES[n];
            choice.why = Why::Trial;
            choice.cost = costs(n, known(n));
        } else if let Some((best, cost)) = best {
            choice.codec = CANDIDATES[best];
            choice.why = if link_price >= LINK_BOUND {
                Why::Link
            } else {
                Why::Saves
            };
            choice.cost = cost;
        } else if all().any(|n| saves(costs_at(processor_price, receiver, n, known(n)))) {
            choice.why = Why::GuestFirst;
        } else if all().any(|n| saves(costs_at(processor_price, 0.0, n, known(n)))) {
            choice.why = Why::Receiver;
        } else if all().all(|n| known(n).ratio > 1.0 - MUST_SAVE) {
            choice.why = Why::Incompressible;
        }
        choice
    }

    /// What a second of the link is worth: 0 where only compressors count, 1 where only the link
    /// does.
    fn link_price(
        &mut self,
        at: &Conditions,
        (bandwidth, share): (f64, f64),
        idle: bool,
        loads: impl Fn(usize, Estimate) -> (f64, f64),
    ) -> f64 {
        let fill = at.fill.clamp(0.0, 1.0);
        if at.bytes_per_second.is_none() {
            return fill.max(UNMEASURED_FILL);
        }
        let compressors = at.compressors.max(1) as f64;
        let beside = at.beside.as_secs_f64() / (CHUNK * compressors);
        let model = &self.model;
        let least = |content: Content, price: f64| {
            let all = (0..CANDIDATES.len()).map(|n| loads(n, model.estimate(content, n)));
            let raw = std::iter::once((1.0 / bandwidth, 0.0));
            let worth = |(link, compressors): &(f64, f64)| {
                price * link + (1.0 - price + PRICE_IDLE * share) * compressors
            };
            let best = raw.chain(all).min_by(|a, b| worth(a).total_cmp(&worth(b)));
            let (link, compressors) = best.unwrap_or_default();
            (link, compressors + beside)
        };
        // Where no processor is idle raw is never wrong.
        self.price.of((bandwidth, fill), idle, least)
    }

    /// The one of those codecs that may be best.
    fn worth_a_trial(
        &self,
        among: impl Iterator<Item = usize>,
        (content, now): (Content, Duration),
        best: f64,
        costs: impl Fn(usize, Estimate) -> f64,
    ) -> Option<usize> {
        among
            .map(|n| (n, self.model.estimate(content, n)))
            .map(|(n, known)| {
                let hope = match self.model.age(content, n, now) {
                    Some(age) => HOPE.powf(1.0 + age.div_duration_f64(HOPE_FADES)),
                    None => 0.0,
                };
                (n, costs(n, known.hoped(hope.max(HOPE_UNTRIED))))
            })
            .filter(|(_, hoped)| *hoped < best)
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(n, _)| n)
    }

    /// Counts processor time that compressing took beside what [`Self::learn`] is told.
    pub fn charge(&mut self, processor: Duration) {
        self.allowance.take(processor);
    }

    /// Learns from a chunk of `plain` bytes that became `encoded` in `processor` time of a thread.
    /// One that did not shrink became as long as it was.
    pub fn learn(
        &mut self,
        content: Content,
        codec: CodecSpec,
        now: Duration,
        (plain, encoded): (usize, usize),
        processor: Duration,
    ) {
        self.charge(processor);
        let Some(n) = CANDIDATES.iter().position(|c| *c == codec) else {
            return;
        };
        if plain > 0 {
            let cost = processor.as_nanos() as f64 / plain as f64;
            let ratio = encoded.min(plain) as f64 / plain as f64;
            // After others, caches are cold, which says little of what it takes when it is chosen.
            let warm = self.chunks <= self.used[n] + WARM;
            let known = self.model.estimate(content, n).cost;
            let believed = if warm || cost < known { 1.0 } else { COLD };
            let cost = known + believed * (cost - known);
            self.used[n] = self.chunks;
            self.model
                .learn(content, n, now, (cost, ratio), telling(plain));
        }
    }

    /// What is known of a codec on that kind of content: nanoseconds of processor time a byte, and
    /// encoded ÷ plain. None for one that is never chosen.
    #[must_use]
    pub fn known(&self, content: Content, codec: CodecSpec) -> Option<(f64, f64)> {
        let n = CANDIDATES.iter().position(|c| *c == codec)?;
        let cell = self.model.estimate(content, n);
        Some((cell.cost, cell.ratio))
    }
}

/// What a chunk of so many bytes says about others: a few pages say little.
fn telling(plain: usize) -> f64 {
    const ALL: f64 = 65_536.0;
    (plain as f64 / ALL).min(1.0)
}

#[cfg(test)]
mod tests;
