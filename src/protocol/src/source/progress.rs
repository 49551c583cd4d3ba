//! What the source counts and times, and how it is getting on. Plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ChunkStats;
use crate::ids::Time;
use crate::message::{Prepared, Resumed};
use crate::policy::Weighed;

/// What is being done, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until the destination has accepted.
    Connecting,
    /// Passes while the guest runs.
    PreCopy,
    /// The guest stands still.
    Switchover,
    /// The right to run is changing hands.
    Handover,
    /// The guest runs at the destination; storage jobs of the source are still in flight.
    Settling,
    /// The guest is being let run on at the source.
    Aborting,
    /// Over.
    Finished,
}

/// A moment of a migration.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// The pass, from 1; 0 before the first.
    pub pass: u32,
    /// Pages of the pass not yet acknowledged.
    pub pages_left: u64,
    /// Storage jobs handed over that may still change a disk, or of whose end the destination has
    /// yet to confirm that it knows.
    pub jobs_unsettled: u64,
    /// Pages of the pass.
    pub pages_total: u64,
    /// Bytes on the page streams so far.
    pub bytes_wire: u64,
    /// Wire throughput in bytes per second.
    pub throughput: Option<f64>,
    /// Blackout predicted for a switchover now.
    pub predicted: Option<Duration>,
    /// The newest passes, the one under way last.
    pub passes: Vec<PassProgress>,
    /// Encoded bytes so far, by codec.
    pub bytes_by_codec: BTreeMap<u8, u64>,
}

/// How a pass has gone, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassProgress {
    /// From 1.
    pub pass: u32,
    /// Pages that might have changed.
    pub considered: u64,
    /// Pages whose content was sent.
    pub sent: u64,
}

/// Passes that [`Progress`] tells of.
const PASSES_TOLD: usize = 32;

/// Figures of one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PassStats {
    /// From 1.
    pub pass: u32,
    /// When it began: the harvest.
    pub began: Time,
    /// How long it took, until the last acknowledgement.
    pub duration: Duration,
    /// Pages that might have changed.
    pub pages_considered: u64,
    /// Pages whose content was sent.
    pub pages_data: u64,
    /// Pages that were zero.
    pub pages_zero: u64,
    /// Pages left out, as the destination has them.
    pub pages_unchanged: u64,
    /// Time to read and compare pages, summed over all threads.
    pub read: Duration,
    /// Processor time of that.
    pub read_ran: Duration,
    /// Pages left for the end.
    pub pages_deferred: u64,
    /// Those of them that change all the time; the others are in groups with them.
    pub pages_hot: u64,
    /// Write notifications since the last pass began.
    pub notifications: u64,
    /// How long writers waited for them, as far as the tracker knows.
    pub stall: Duration,
    /// Bytes on the streams.
    pub bytes_wire: u64,
    /// Whether the guest stood still.
    pub paused: bool,
}

/// Moments, in the driver's time; zero where not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Made.
    pub start: Time,
    /// First connection.
    pub connected: Time,
    /// The destination has made the machine.
    pub accepted: Time,
    /// Pause asked for.
    pub pause: Time,
    /// vCPUs stand still.
    pub paused: Time,
    /// IO cancelled.
    pub io_cancelled: Time,
    /// State saved.
    pub state_saved: Time,
    /// Last page acknowledged.
    pub final_acked: Time,
    /// `Prepared` arrived.
    pub prepared: Time,
    /// `relinquished` on disk.
    pub relinquished: Time,
    /// `Resumed` arrived.
    pub resumed: Time,
    /// All unsettled storage jobs are settled there.
    pub settled: Time,
    /// It was given up: the guest goes on here.
    pub gave_up: Time,
}

/// Everything the source counts.
#[derive(Clone, Debug)]
pub struct SourceStats {
    /// When things happened.
    pub timeline: Timeline,
    /// Passes that have ended.
    pub passes: Vec<PassStats>,
    /// The pass under way.
    pub current: PassStats,
    /// Bytes on the page streams.
    pub bytes_wire: u64,
    /// Encoded bytes by codec.
    pub bytes_by_codec: BTreeMap<u8, u64>,
    /// Pages acknowledged, whatever they held.
    pub pages_acked: u64,
    /// Pages that were zero.
    pub pages_zero: u64,
    /// Pages left out, as the destination has them.
    pub pages_unchanged: u64,
    /// Pages whose content was sent.
    pub pages_data: u64,
    /// Shortest round trip seen.
    pub rtt: Duration,
    /// The destination's figures.
    pub prepared: Prepared,
    /// The destination's figures.
    pub resumed: Resumed,
    /// What the policy predicted when it decided.
    pub predicted_blackout: Option<Duration>,
    /// What was decided after which pass, and why.
    pub decisions: Vec<(u32, Weighed)>,
    /// Whether writers were slowed down.
    pub throttled: bool,
    /// Bytes and seconds of past passes, older ones weighing less.
    rate: (f64, f64),
    /// Bytes for a changed page, in the last pass that says something about it.
    bytes_per_page: Option<f64>,
}

/// Passes shorter than this say nothing about the link.
const TELLING_BYTES: u64 = 256 << 10;
/// And passes of fewer changed pages nothing about what one takes.
const TELLING_PAGES: u64 = 32;
/// A pass that was much shorter than the one before still leaves so much of what that left: in a long
/// one, a guest comes to the same pages again and again.
const LEAST_SHARE: f64 = 0.25;

impl SourceStats {
    /// The newest passes, the one under way last.
    pub(super) fn newest_passes(&self) -> Vec<PassProgress> {
        let ended = self.passes.len().saturating_sub(PASSES_TOLD - 1);
        let under_way = std::iter::once(&self.current).filter(|p| p.pass > 0);
        let newest = self.passes.iter().skip(ended).chain(under_way);
        let mut told: Vec<PassProgress> = newest
            .map(|p| PassProgress {
                pass: p.pass,
                considered: p.pages_considered,
                sent: p.pages_data,
            })
            .collect();
        // The last one is both when it has just ended.
        told.dedup_by_key(|p| p.pass);
        told
    }

    pub(super) fn new(now: Time) -> Self {
        Self {
            timeline: Timeline {
                start: now,
                ..Timeline::default()
            },
            passes: Vec::new(),
            current: PassStats::default(),
            bytes_wire: 0,
            bytes_by_codec: BTreeMap::new(),
            pages_acked: 0,
            pages_zero: 0,
            pages_unchanged: 0,
            pages_data: 0,
            rtt: Duration::ZERO,
            prepared: Prepared::default(),
            resumed: Resumed::default(),
            predicted_blackout: None,
            decisions: Vec::new(),
            throttled: false,
            rate: (0.0, 0.0),
            bytes_per_page: None,
        }
    }

    pub(super) fn begin_pass(&mut self, pass: u32, now: Time) {
        self.current = PassStats {
            pass,
            began: now,
            ..PassStats::default()
        };
    }

    pub(super) fn notified(&mut self, notifications: u64, stall: Duration) {
        self.current.notifications += notifications;
        self.current.stall += stall;
    }

    pub(super) fn decided(&mut self, pass: u32, weighed: &Weighed) {
        self.decisions.push((pass, weighed.clone()));
    }

    /// So many pages may have changed; beside them so many are left for the end, some of them hot.
    pub(super) fn harvested(&mut self, pages: u64, (deferred, hot): (u64, u64)) {
        self.current.pages_considered = pages;
        self.current.pages_deferred = deferred;
        self.current.pages_hot = hot;
    }

    pub(super) fn chunk_sent(&mut self, chunk: &ChunkStats) {
        self.bytes_wire += chunk.bytes_wire;
        self.pages_zero += chunk.pages_zero;
        self.pages_data += chunk.pages_data;
        self.pages_unchanged += chunk.pages_unchanged;
        self.current.pages_unchanged += chunk.pages_unchanged;
        self.current.read += chunk.read;
        self.current.read_ran += chunk.read_ran;
        self.current.bytes_wire += chunk.bytes_wire;
        self.current.pages_data += chunk.pages_data;
        self.current.pages_zero += chunk.pages_zero;
        if chunk.bytes_encoded > 0 {
            *self.bytes_by_codec.entry(chunk.codec).or_default() += chunk.bytes_encoded;
        }
    }

    pub(super) fn acknowledged(&mut self, pages: u64) {
        self.pages_acked += pages;
    }

    pub(super) fn end_pass(&mut self, now: Time, paused: bool) {
        self.current.duration = now.saturating_sub(self.current.began);
        self.current.paused = paused;
        let pass = std::mem::take(&mut self.current);
        if pass.bytes_wire >= TELLING_BYTES || self.rate.1 == 0.0 {
            self.rate.0 = self.rate.0 / 2.0 + pass.bytes_wire as f64;
            self.rate.1 = self.rate.1 / 2.0 + pass.duration.as_secs_f64();
        }
        let changed = pass.pages_data + pass.pages_zero;
        if changed >= TELLING_PAGES || (changed > 0 && self.bytes_per_page.is_none()) {
            self.bytes_per_page = Some(pass.bytes_wire as f64 / changed as f64);
        }
        self.passes.push(pass);
    }

    /// Wire throughput in bytes per second, recent passes weighing most.
    #[must_use]
    pub fn throughput(&self) -> Option<f64> {
        (self.rate.1 > 0.0 && self.rate.0 > 0.0).then(|| self.rate.0 / self.rate.1)
    }

    /// Wire bytes per page that had changed; a page and a little where nothing is known.
    #[must_use]
    pub fn bytes_per_page(&self) -> f64 {
        self.bytes_per_page.unwrap_or(4100.0)
    }

    /// Pages that had changed when the last pass came to them, and hot ones left for the end.
    pub(super) fn last_pass_changed(&self) -> u64 {
        let last = self.passes.last();
        last.map_or(0, |p| p.pages_data + p.pages_zero + p.pages_hot)
    }

    /// Of `remaining` pages that may have changed since the last pass began, how many must be
    /// reckoned with. All of them, where trackers are exact. Where content is compared, many are
    /// mere neighbours of what was written: as large a share as in the last pass.
    pub(super) fn likely_changed(&self, remaining: u64, hot: u64) -> u64 {
        let Some(last) = self.compared() else {
            return remaining;
        };
        let considered = last.pages_considered + last.pages_deferred;
        let share = self.last_pass_changed() as f64 / considered.max(1) as f64;
        let changed = remaining as f64 * share;
        (changed.ceil() as u64).max(hot).min(remaining)
    }

    /// The same, as far as the guest goes on as it did: what it changes grows with time, and the
    /// last pass was shorter than the one before. Never more than [`Self::likely_changed`].
    pub(super) fn expected_changed(&self, remaining: u64, hot: u64) -> u64 {
        let likely = self.likely_changed(remaining, hot);
        let [.., before, last] = self.passes.as_slice() else {
            return likely;
        };
        if self.compared().is_none() || before.duration.is_zero() {
            return likely;
        }
        let longer = last.duration.as_secs_f64() / before.duration.as_secs_f64();
        let changed = self.last_pass_changed() as f64 * longer.max(LEAST_SHARE);
        (changed.ceil() as u64).max(hot).min(likely)
    }

    /// The last pass, where its pages were compared with what the destination has.
    fn compared(&self) -> Option<&PassStats> {
        let compares = self.pages_unchanged > 0;
        self.passes.last().filter(|p| compares && p.pass > 1)
    }

    /// Processor time to read and compare a page; zero where nothing is compared.
    pub(super) fn read_per_page(&self) -> Duration {
        let compared = self.passes.iter().rev().filter(|p| p.pass > 1);
        let telling = compared
            .filter(|p| p.pages_considered >= TELLING_PAGES)
            .find(|_| self.pages_unchanged > 0);
        telling.map_or(Duration::ZERO, |p| {
            p.read_ran.div_f64(p.pages_considered as f64)
        })
    }

    pub(super) fn last_pass_duration(&self) -> Duration {
        self.passes.last().map_or(Duration::ZERO, |p| p.duration)
    }

    /// The parts of the blackout, which sum to it: pause, io_cancel, save_state, final_pages,
    /// send_state, restore, handover, resume. `Resumed` takes half a round trip to arrive, which
    /// is not the guest's time. None unless the migration completed.
    #[must_use]
    pub fn blackout(&self) -> Option<[Duration; 8]> {
        let t = &self.timeline;
        if t.resumed.is_zero() {
            return None;
        }
        let us = Duration::from_micros;
        // A round trip that was measured in the greeting may be longer than this one was.
        let there = us(self.resumed.flush_us.saturating_add(self.resumed.resume_us));
        let answered = t.resumed.saturating_sub(t.relinquished);
        let rtt = self.rtt.min(answered.saturating_sub(there));
        let until = t.resumed.saturating_sub(rtt / 2).max(t.prepared);
        let total = until.saturating_sub(t.pause);
        let pause = t.paused.saturating_sub(t.pause);
        let io_cancel = t.io_cancelled.saturating_sub(t.paused);
        let save_state = t.state_saved.saturating_sub(t.io_cancelled);
        let final_pages = t.final_acked.saturating_sub(t.state_saved);
        // The destination's own figures are kept within what passed here, as its acknowledgements
        // may come late, and its word is not proof.
        let waited = t.prepared.saturating_sub(t.final_acked);
        let restore = us(self.prepared.restore_us).min(waited);
        let send_state = (waited - restore).saturating_sub(us(self.prepared.flush_us));
        let resume = us(self.resumed.resume_us).min(until.saturating_sub(t.prepared));
        let others = pause + io_cancel + save_state + final_pages + send_state + restore + resume;
        let handover = total.saturating_sub(others);
        Some([
            pause,
            io_cancel,
            save_state,
            final_pages,
            send_state,
            restore,
            handover,
            resume,
        ])
    }
}
