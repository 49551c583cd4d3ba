//! The source from the pause to the confirmation: every step in which the guest stands still.

use crate::ids::Time;
use crate::message::{AbortCode, Message, Prepared, Resumed};
use crate::ownership::{Record, Stored};
use crate::pages::PageSet;
use crate::wire::{MAX_DATA_PAGES, digest};

use super::{Outcome, Source, SourceOutput, State, describe};

/// Fewest pages in a chunk of the last pass, however many streams share it.
const MIN_FINAL_CHUNK: u64 = 8;

impl Source {
    pub(super) fn pause_deadline(&self) -> Option<Time> {
        matches!(
            self.state,
            State::Pausing
                | State::CancellingIo
                | State::SavingVm
                | State::FinalHarvest
                | State::FinalSending
        )
        .then(|| self.stats.timeline.pause + self.config.pause_deadline)
    }

    pub(super) fn begin_switchover(&mut self, now: Time) {
        // Nobody waits for a writer that is made to wait: neither the pause nor the saved state.
        self.throttle(None);
        self.stats.timeline.pause = now;
        self.state = State::Pausing;
        self.outputs.push_back(SourceOutput::Pause);
    }

    pub(super) fn paused(&mut self, now: Time) {
        self.stats.timeline.paused = now;
        self.state = State::CancellingIo;
        self.outputs.push_back(SourceOutput::CancelIo);
    }

    /// The state goes first: it travels beside the last pages. Saving it may write to guest RAM,
    /// so the last harvest comes after it.
    pub(super) fn state_saved(&mut self, now: Time, blob: Vec<u8>) {
        self.stats.timeline.state_saved = now;
        self.state = State::FinalHarvest;
        let pass = self.pass;
        self.outputs.push_back(SourceOutput::Harvest { pass });
        let digest = digest(&blob);
        self.send(Message::State { blob, digest });
    }

    pub(super) fn final_harvest(&mut self, now: Time, dirty: &PageSet) {
        self.pending.add(dirty);
        self.stats.harvested(self.pending.pages(), (0, 0));
        self.state = State::FinalSending;
        self.final_chunk_pages = self
            .pending
            .pages()
            .div_ceil(u64::from(self.config.streams.max(1)) * 2)
            .clamp(MIN_FINAL_CHUNK, MAX_DATA_PAGES);
        self.pump_final(now);
    }

    pub(super) fn pump_final(&mut self, now: Time) {
        self.pump(self.final_chunk_pages);
        let handed_out = self.pending.pages() == self.pending.in_flight_pages();
        // Until a chunk was read, nobody knows whether it travels.
        let read = self.chunks_sent + self.chunks_unchanged == self.pending.chunks();
        if handed_out && read && !self.all_sent {
            self.all_sent = true;
            let chunks = self.chunks_sent;
            self.send(Message::AllSent { chunks });
        }
        if self.pending.is_empty() && self.stats.timeline.final_acked.is_zero() {
            self.stats.timeline.final_acked = now;
            self.stats.end_pass(now, true);
        }
    }

    pub(super) fn prepared(&mut self, now: Time, prepared: Prepared) {
        if !self.pending.is_empty() {
            let detail = format!(
                "the destination says it is prepared, but has not acknowledged {} pages",
                self.pending.pages()
            );
            return self.fail(now, AbortCode::Protocol, detail);
        }
        self.stats.timeline.prepared = now;
        self.stats.prepared = prepared;
        self.state = State::Relinquishing { failed: None };
        self.relinquish();
    }

    pub(super) fn persisted(&mut self, now: Time, stored: &Stored) {
        match (stored.record(), &self.state) {
            (Some(Record::Relinquished(_)), State::Relinquishing { .. }) => {
                // Whatever failed meanwhile comes too late: from here on only forward.
                self.stats.timeline.relinquished = now;
                self.state = State::Handover {
                    connected: self.connected,
                    give_up_at: now + self.config.reconnect_for,
                    attempts: 0,
                };
                if self.connected {
                    self.tell_all_settled();
                    self.send(Message::Commit);
                } else {
                    let after = std::time::Duration::ZERO;
                    self.outputs.push_back(SourceOutput::Reconnect { after });
                }
            }
            (Some(Record::Released(_)), State::Releasing) => {
                self.stats.timeline.settled = now;
                self.send(Message::Bye);
                self.outputs.push_back(SourceOutput::ForgetVm);
                self.finish(Outcome::Completed);
            }
            _ => {}
        }
    }

    pub(super) fn persist_failed(&mut self, now: Time, detail: String) {
        match &self.state {
            State::Relinquishing { failed } => {
                // The commit was never sent, so the destination cannot become the owner.
                let (code, detail) = failed.clone().unwrap_or((
                    AbortCode::Failed,
                    format!("the journal could not be written: {detail}"),
                ));
                self.state = State::FinalSending;
                self.fail(now, code, detail);
            }
            State::Releasing => {
                // The destination runs the guest; the missing record only means that this host
                // will ask again after a crash.
                self.send(Message::Bye);
                self.outputs.push_back(SourceOutput::ForgetVm);
                self.finish(Outcome::Completed);
            }
            _ => {}
        }
    }

    pub(super) fn rejoin(&mut self, now: Time) {
        if let State::Handover { connected, .. } | State::Settling { connected, .. } =
            &mut self.state
        {
            *connected = true;
        }
        self.connected = true;
        self.last_heard = now;
        self.last_ping = now;
        self.send(Message::Rejoin {
            migration: self.config.migration,
            token: self.config.token,
        });
        match &self.state {
            State::Handover { .. } => {
                self.tell_all_settled();
                self.send(Message::Commit);
            }
            State::Settling { .. } => self.tell_all_settled(),
            State::Telling { outcome, .. } => {
                let code = match outcome {
                    Outcome::Aborted { code, .. } => *code,
                    Outcome::Completed | Outcome::Undecided { .. } => AbortCode::Failed,
                };
                let (phase, detail) = ("Rejoin".to_owned(), describe(outcome).to_owned());
                self.send(Message::Abort {
                    code,
                    phase,
                    detail,
                });
            }
            _ => {}
        }
    }

    pub(super) fn resumed_there(&mut self, now: Time, resumed: Resumed) {
        self.stats.timeline.resumed = now;
        self.stats.resumed = resumed;
        self.settle(now);
    }
}
