//! The source while the guest runs: passes, and what is decided between them.

use crate::ids::{ChunkId, Time};
use crate::message::{AbortCode, Message};
use crate::pages::PageSet;
use crate::policy::{Decision, PolicyInput, decide};
use crate::wire::{MAX_DATA_PAGES, MAX_RANGES};

use super::{ChunkStats, Source, SourceOutput, State};

impl Source {
    pub(super) fn harvest(&mut self, now: Time) {
        self.pass += 1;
        // The blackout has round trips in it: their length is measured anew for each decision.
        self.ping(now);
        self.pong_due = true;
        self.state = State::Harvesting;
        self.stats.begin_pass(self.pass, now);
        let pass = self.pass;
        self.outputs.push_back(SourceOutput::Harvest { pass });
    }

    pub(super) fn harvested(&mut self, now: Time, mut dirty: PageSet, group_pages: u64) {
        let (pages, mut hot) = (dirty.len(), 0);
        if self.pass > 1 {
            self.hot.end_pass(&dirty);
            let mut input = self.policy_input(pages);
            if input.changed_pages * 10 >= input.last_changed * 9 {
                self.not_shrinking += 1;
            } else {
                self.not_shrinking = 0;
            }
            input.not_shrinking = self.not_shrinking;
            let weighed = decide(&input, &self.config.limits);
            self.stats.decided(self.pass - 1, &weighed);
            match weighed.decision {
                Decision::Continue { defer_hot: true } => {
                    self.hot.leave_out(&mut dirty, group_pages);
                    hot = self.hot.len();
                }
                Decision::Continue { defer_hot: false } => {}
                Decision::Throttle { pages_per_second } => {
                    self.throttle(Some(pages_per_second));
                    self.not_shrinking = 0;
                }
                Decision::SwitchOver => {
                    self.stats.predicted_blackout = Some(weighed.blackout);
                    return self.begin_switchover(now);
                }
                Decision::GiveUp(why) => {
                    return self.fail(now, AbortCode::NotConverging, why);
                }
            }
        }
        self.pending.add(&dirty);
        self.stats
            .harvested(dirty.len(), (pages - dirty.len(), hot));
        self.last_progress = now;
        self.state = State::Sending;
        let (pass, pages) = (self.pass, dirty.len());
        self.send(Message::PassBegin { pass, pages });
        self.pump(MAX_DATA_PAGES);
        self.end_pass_if_done(now);
    }

    /// Sets how fast writers may go on, where that is a change.
    pub(super) fn throttle(&mut self, pages_per_second: Option<u64>) {
        if self.throttled != pages_per_second {
            self.throttled = pages_per_second;
            self.stats.throttled |= pages_per_second.is_some();
            self.outputs
                .push_back(SourceOutput::Throttle { pages_per_second });
        }
    }

    pub(super) fn policy_input(&self, remaining_pages: u64) -> PolicyInput {
        PolicyInput {
            passes: self.pass.saturating_sub(1),
            remaining_pages,
            hot_pages: self.hot.len(),
            hot_again: self.hot.again(),
            changed_pages: self.stats.likely_changed(remaining_pages, self.hot.len()),
            expected_pages: self.stats.expected_changed(remaining_pages, self.hot.len()),
            last_changed: self.stats.last_pass_changed(),
            read_per_page: self.stats.read_per_page(),
            last_duration: self.stats.last_pass_duration(),
            last_stall: self.stats.current.stall,
            bytes_per_page: self.stats.bytes_per_page(),
            throughput: self.stats.throughput(),
            fixed: self.config.fixed_cost + self.rtt.unwrap_or_default() * 2,
            not_shrinking: self.not_shrinking,
            can_throttle: self.config.can_throttle,
            throttled: self.throttled,
        }
    }

    pub(super) fn pump(&mut self, max_pages: u64) {
        while self.pending.in_flight_pages() < self.config.window_pages {
            let Some(chunk) = self.pending.next_chunk(self.pass, max_pages, MAX_RANGES) else {
                return;
            };
            self.outputs.push_back(SourceOutput::SendChunk(chunk));
        }
    }

    pub(super) fn chunk_sent(&mut self, now: Time, stats: &ChunkStats) {
        self.chunks_sent += 1;
        self.stats.chunk_sent(stats);
        // In the first pass, everything has changed. Neighbours that a group brought along have not.
        let changed = (stats.pages_data + stats.pages_zero) * 2 > stats.pages_unchanged;
        if self.pass > 1 && changed {
            for &range in self.pending.in_flight(stats.chunk) {
                self.hot.note(range);
            }
        }
        if self.state == State::FinalSending {
            self.pump_final(now);
        }
    }

    /// Nothing of the chunk travels, so nobody else will acknowledge it.
    pub(super) fn chunk_unchanged(&mut self, now: Time, stats: &ChunkStats) {
        self.chunks_unchanged += 1;
        self.stats.chunk_sent(stats);
        self.acknowledged(now, &[stats.chunk]);
    }

    pub(super) fn acknowledged(&mut self, now: Time, chunks: &[ChunkId]) {
        self.last_progress = now;
        for &chunk in chunks {
            match self.pending.acknowledge(chunk) {
                Ok(pages) => self.stats.acknowledged(pages),
                Err(_) => {
                    let detail =
                        format!("chunk {} was acknowledged but is not on its way", chunk.0);
                    return self.fail(now, AbortCode::Protocol, detail);
                }
            }
        }
        match self.state {
            State::Sending => {
                self.pump(MAX_DATA_PAGES);
                self.end_pass_if_done(now);
            }
            State::FinalSending => self.pump_final(now),
            _ => {}
        }
    }

    pub(super) fn end_pass_if_done(&mut self, now: Time) {
        // A pass in which nothing is to be sent lasts for a round trip, or passes would chase each
        // other.
        let empty = self.stats.current.pages_considered == 0;
        if self.pending.is_empty() && !(empty && self.pong_due) {
            self.stats.end_pass(now, false);
            self.harvest(now);
        }
    }
}
