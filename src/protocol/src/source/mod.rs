//! The source's half of a migration as a state machine without IO.
//!
//! Order of calls: whenever something has happened, tell it by [`Source::handle_event`],
//! [`Source::handle_message`] or [`Source::handle_timeout`]; then take outputs by
//! [`Source::poll_output`] until there is none, and carry them out in their order; then wait no
//! longer than [`Source::poll_timeout`] says. `now` never goes backward.
//!
//! What else the driver keeps to:
//! - `Connected` and `ConnectionLost` are told once for each connection or attempt to make one.
//!   `Reconnect` means that the connection before it, if it still stands, is to be closed, and its
//!   end not told. Nothing of an older connection is told after `Connected`.
//! - Each chunk is answered once: `ChunkSent` before its frame can be acknowledged, or
//!   `ChunkUnchanged` where there is nothing to send.
//! - A harvest clears nothing; a chunk's pages are protected when it is sent, then read.
//! - Work that an abort has overtaken may be finished or dropped; what it answers is ignored.
//! - `IoSettled` may be told from `IoCancelled` on, in any state; what is told of jobs that were not
//!   handed over as unsettled is ignored.
//! - After `ResumeGuest` the migration may go on for some seconds, until the destination has heard
//!   of it; the guest already runs. `Finished` is the last output, on which all is closed.

mod hot;
mod precopy;
mod progress;
mod settling;
mod switchover;
mod timers;
mod types;

use std::collections::VecDeque;
use std::time::Duration;

pub use progress::{PassProgress, PassStats, Phase, Progress, SourceStats, Timeline};
pub use types::{ChunkStats, Outcome, SourceConfig, SourceEvent, SourceOutput};

use crate::ids::Time;
use crate::message::{AbortCode, Hello, Message, RunState};
use crate::pending::PendingSet;
use crate::policy::predicted_blackout;
use crate::version::Speaks;
use crate::wire::MAX_DATA_PAGES;
use hot::HotPages;
use settling::HandedOver;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Greeting,
    Offering,
    Harvesting,
    Sending,
    Pausing,
    CancellingIo,
    SavingVm,
    FinalHarvest,
    FinalSending,
    /// `relinquished` is being written; a failure that comes meanwhile waits for the answer.
    Relinquishing {
        failed: Option<(AbortCode, String)>,
    },
    /// Relinquished: the guest may only run at the destination.
    Handover {
        connected: bool,
        give_up_at: Time,
        attempts: u32,
    },
    /// The guest runs at the destination; storage jobs of this side are still in flight.
    Settling {
        connected: bool,
        attempts: u32,
        /// When the last connection was lost.
        lost: Time,
    },
    Releasing,
    Resuming(Outcome),
    /// The guest runs here again; a destination that may be prepared has yet to hear of it.
    Telling {
        outcome: Outcome,
        attempts: u32,
        give_up_at: Time,
    },
    Finished,
}

/// The source. See the module's documentation for the order of calls.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    state: State,
    pending: PendingSet,
    outputs: VecDeque<SourceOutput>,
    stats: SourceStats,
    pass: u32,
    not_shrinking: u32,
    hot: HotPages,
    handed_over: HandedOver,
    throttled: Option<u64>,
    final_chunk_pages: u64,
    /// Chunks handed to the page streams, and chunks of which nothing was to be sent.
    chunks_sent: u64,
    chunks_unchanged: u64,
    all_sent: bool,
    /// The destination has dropped its machine, or said that it gives up.
    gone_there: bool,
    connected: bool,
    last_heard: Time,
    last_ping: Time,
    /// The answer to this pass's ping has yet to come.
    pong_due: bool,
    /// When pages began to be on their way, or an acknowledgement came.
    last_progress: Time,
    rtt: Option<Duration>,
}

/// How often to try to tell a destination that the migration is off: about three seconds.
const TELL_ATTEMPTS: u32 = 5;
/// How long to try, beyond the silence after which a connection counts as lost.
const TELL_FOR: Duration = Duration::from_secs(5);

impl Source {
    /// A source about to connect.
    #[must_use]
    pub fn new(config: SourceConfig, now: Time) -> Self {
        let pending = PendingSet::new(&config.shape.ram);
        Self {
            pending,
            state: State::Connecting,
            outputs: VecDeque::new(),
            stats: SourceStats::new(now),
            pass: 0,
            not_shrinking: 0,
            hot: HotPages::new(&config.shape.ram),
            handed_over: HandedOver::default(),
            throttled: None,
            final_chunk_pages: MAX_DATA_PAGES,
            chunks_sent: 0,
            chunks_unchanged: 0,
            all_sent: false,
            gone_there: false,
            connected: false,
            last_heard: now,
            last_ping: now,
            pong_due: false,
            last_progress: now,
            rtt: None,
            config,
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<SourceOutput> {
        self.outputs.pop_front()
    }

    /// Something has happened.
    pub fn handle_event(&mut self, now: Time, event: SourceEvent) {
        match (event, &self.state) {
            (_, State::Finished) => {}
            (SourceEvent::Connected, State::Connecting) => self.greet(now),
            (
                SourceEvent::Connected,
                State::Handover { .. } | State::Telling { .. } | State::Settling { .. },
            ) => self.rejoin(now),
            (SourceEvent::ConnectionLost { detail }, _) => self.connection_lost(now, detail),
            (
                SourceEvent::Harvested {
                    dirty,
                    notifications,
                    stall,
                    group_pages,
                },
                State::Harvesting,
            ) => {
                self.stats.notified(notifications, stall);
                self.harvested(now, dirty, group_pages);
            }
            (
                SourceEvent::Harvested {
                    dirty,
                    notifications,
                    stall,
                    ..
                },
                State::FinalHarvest,
            ) => {
                self.stats.notified(notifications, stall);
                self.final_harvest(now, &dirty);
            }
            (SourceEvent::ChunkSent(stats), _) => self.chunk_sent(now, &stats),
            (SourceEvent::ChunkUnchanged(stats), State::Sending | State::FinalSending) => {
                self.chunk_unchanged(now, &stats);
            }
            (SourceEvent::Paused, State::Pausing) => self.paused(now),
            (SourceEvent::IoCancelled { jobs }, State::CancellingIo) => {
                self.io_cancelled(now, jobs);
            }
            (SourceEvent::IoSettled(settlements), _) => self.io_settled(settlements),
            (SourceEvent::SettledThere(keys), _) => self.settled_there(&keys),
            (SourceEvent::StateSaved { blob }, State::SavingVm) => self.state_saved(now, blob),
            (SourceEvent::Persisted(stored), _) => self.persisted(now, &stored),
            (SourceEvent::PersistFailed { detail }, _) => self.persist_failed(now, detail),
            (SourceEvent::Resumed, State::Resuming(outcome)) => {
                let outcome = outcome.clone();
                self.tell_then_finish(now, outcome);
            }
            (SourceEvent::CancelRequested, _) => {
                self.fail(now, AbortCode::Cancelled, "cancelled".to_owned());
            }
            (SourceEvent::ResumeFailed { detail }, State::Resuming(outcome)) => {
                // Even resuming failed: say both. The destination is to hear of the abort all the
                // same.
                let detail = format!("{}; and then: {detail}", describe(outcome));
                let code = AbortCode::Failed;
                self.tell_then_finish(now, Outcome::Aborted { code, detail });
            }
            (SourceEvent::Failed { detail }, _) => self.fail(now, AbortCode::Failed, detail),
            // Answers to what was asked before an abort.
            _ => {}
        }
    }

    /// The destination has said something.
    pub fn handle_message(&mut self, now: Time, message: Message) {
        self.last_heard = now;
        match (message, &self.state) {
            (_, State::Finished) => {}
            // The destination of an aborted migration has dropped its machine.
            (Message::Bye | Message::Abort { .. }, State::Resuming(_)) => self.gone_there = true,
            (Message::Bye | Message::Abort { .. }, State::Telling { outcome, .. }) => {
                let outcome = outcome.clone();
                self.finish(outcome);
            }
            (_, State::Resuming(_) | State::Telling { .. }) => {}
            (Message::Ping { nonce }, _) => self.send(Message::Pong { nonce }),
            (Message::Pong { nonce }, _) => self.pong(now, nonce),
            (Message::Load(load), _) => self.outputs.push_back(SourceOutput::PeerLoad(load)),
            (Message::Welcome { agreed, .. }, State::Greeting)
                if !agreed.suits(&Speaks::CURRENT) =>
            {
                let detail = format!("the destination chose {agreed:?}, which was not offered");
                self.fail(now, AbortCode::Version, detail);
            }
            (Message::Welcome { .. }, State::Greeting) => {
                self.state = State::Offering;
                let offer = Box::new(self.config.shape.clone());
                self.send(Message::Offer(offer));
            }
            (Message::Accept, State::Offering) => {
                self.stats.timeline.accepted = now;
                self.harvest(now);
            }
            (Message::Ack { chunks }, _) => self.acknowledged(now, &chunks),
            (Message::Prepared(p), State::FinalSending) => self.prepared(now, p),
            (Message::Resumed(r), State::Handover { .. }) => self.resumed_there(now, r),
            (Message::SettledAck { jobs }, State::Handover { .. } | State::Settling { .. }) => {
                self.settled_there(&jobs);
            }
            (Message::CancelRequest, _) => {
                let detail = "cancelled at the destination".to_owned();
                self.fail(now, AbortCode::Cancelled, detail);
            }
            (
                Message::Abort {
                    code,
                    phase,
                    detail,
                },
                State::Handover { .. } | State::Settling { .. },
            ) => {
                // It has no right to: whatever it says, the guest may run there.
                let detail =
                    format!("the destination said {code:?} after the commit ({phase}: {detail})");
                self.finish(Outcome::Undecided { detail });
            }
            (
                Message::Abort {
                    code,
                    phase,
                    detail,
                },
                _,
            ) => {
                self.connected = false;
                self.gone_there = true;
                self.fail(
                    now,
                    code,
                    format!("the destination gave up ({phase}): {detail}"),
                );
            }
            (
                Message::Resumed(_) | Message::SettledAck { .. },
                State::Releasing | State::Settling { .. },
            ) => {}
            (other, state) => {
                let detail = format!("{} makes no sense in {state:?}", other.name());
                self.fail(now, AbortCode::Protocol, detail);
            }
        }
    }

    /// Pages not yet acknowledged.
    #[must_use]
    pub fn pending_pages(&self) -> u64 {
        self.pending.pages()
    }

    /// How it is getting on.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            phase: self.phase(),
            pass: self.pass,
            pages_left: self.pending.pages(),
            jobs_unsettled: self.handed_over.left(),
            pages_total: self.stats.current.pages_considered,
            bytes_wire: self.stats.bytes_wire,
            throughput: self.stats.throughput(),
            predicted: (self.pass > 0)
                .then(|| predicted_blackout(&self.policy_input(self.pending.pages()))),
            passes: self.stats.newest_passes(),
            bytes_by_codec: self.stats.bytes_by_codec.clone(),
        }
    }

    /// What was counted and timed.
    #[must_use]
    pub fn stats(&self) -> &SourceStats {
        &self.stats
    }

    /// Whether the right to run was given up.
    #[must_use]
    pub fn has_relinquished(&self) -> bool {
        matches!(
            self.state,
            State::Handover { .. } | State::Settling { .. } | State::Releasing
        )
    }

    fn phase(&self) -> Phase {
        match self.state {
            State::Connecting | State::Greeting | State::Offering => Phase::Connecting,
            State::Harvesting | State::Sending => Phase::PreCopy,
            State::Pausing | State::CancellingIo | State::SavingVm => Phase::Switchover,
            State::FinalHarvest | State::FinalSending => Phase::Switchover,
            State::Relinquishing { .. } | State::Handover { .. } | State::Releasing => {
                Phase::Handover
            }
            State::Settling { .. } => Phase::Settling,
            State::Resuming(_) | State::Telling { .. } => Phase::Aborting,
            State::Finished => Phase::Finished,
        }
    }

    fn send(&mut self, message: Message) {
        if self.connected {
            self.outputs.push_back(SourceOutput::Send(message));
        }
    }

    fn ping(&mut self, now: Time) {
        self.last_ping = now;
        let nonce = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.send(Message::Ping { nonce });
    }

    fn pong(&mut self, now: Time, nonce: u64) {
        let Some(rtt) = now.checked_sub(Duration::from_nanos(nonce)) else {
            return;
        };
        self.rtt = Some(self.rtt.map_or(rtt, |r| r.min(rtt)));
        self.stats.rtt = self.rtt.unwrap_or_default();
        self.pong_due = false;
        if self.state == State::Sending {
            self.end_pass_if_done(now);
        }
    }

    fn greet(&mut self, now: Time) {
        self.connected = true;
        self.last_heard = now;
        self.state = State::Greeting;
        self.stats.timeline.connected = now;
        let hello = Hello {
            speaks: Speaks::CURRENT,
            software: self.config.software.clone(),
            migration: self.config.migration,
            token: self.config.token,
            streams: self.config.streams,
            trace: self.config.trace,
        };
        self.send(Message::Hello(hello));
        self.ping(now);
    }

    fn connection_lost(&mut self, now: Time, detail: String) {
        self.connected = false;
        match &mut self.state {
            State::Handover {
                connected,
                attempts,
                ..
            } => {
                *connected = false;
                *attempts += 1;
                let after = backoff(*attempts);
                self.outputs.push_back(SourceOutput::Reconnect { after });
            }
            State::Telling {
                outcome, attempts, ..
            } => {
                *attempts += 1;
                if *attempts > TELL_ATTEMPTS {
                    let outcome = outcome.clone();
                    return self.finish(outcome);
                }
                let after = backoff(*attempts);
                self.outputs.push_back(SourceOutput::Reconnect { after });
            }
            State::Settling { .. } => self.settling_connection_lost(now),
            State::Releasing | State::Resuming(_) | State::Finished => {}
            State::Relinquishing { failed } => {
                failed.get_or_insert((AbortCode::Failed, detail));
            }
            _ => {
                let detail = format!("the connection to the destination was lost: {detail}");
                self.fail(now, AbortCode::Failed, detail);
            }
        }
    }

    /// Gives up, if that is still allowed: the guest goes on here.
    fn fail(&mut self, now: Time, code: AbortCode, detail: String) {
        match &mut self.state {
            State::Finished
            | State::Resuming(_)
            | State::Telling { .. }
            | State::Handover { .. }
            | State::Settling { .. }
            | State::Releasing => return,
            State::Relinquishing { failed } => {
                // The record may be on disk any moment: what happens next depends on that.
                failed.get_or_insert((code, detail));
                return;
            }
            _ => {}
        }
        self.stats.timeline.gave_up = now;
        let phase = format!("{:?}", self.phase());
        self.send(Message::Abort {
            code,
            phase,
            detail: detail.clone(),
        });
        self.abort(Outcome::Aborted { code, detail });
    }

    fn abort(&mut self, outcome: Outcome) {
        self.pending.put_back();
        let run = self.config.shape.run_state == RunState::Running;
        // Chunks not yet taken by the driver are of no use any more.
        self.outputs
            .retain(|o| !matches!(o, SourceOutput::SendChunk(_)));
        self.throttle(None);
        self.outputs.push_back(SourceOutput::ResumeGuest { run });
        self.state = State::Resuming(outcome);
    }

    /// A destination that has heard `AllSent` may be prepared, and would wait for ever. The guest
    /// runs here by now, so this only delays the report.
    fn tell_then_finish(&mut self, now: Time, outcome: Outcome) {
        if !self.all_sent || self.gone_there {
            return self.finish(outcome);
        }
        self.state = State::Telling {
            outcome,
            attempts: 0,
            give_up_at: now + self.config.silence + TELL_FOR,
        };
        if !self.connected {
            let after = Duration::ZERO;
            self.outputs.push_back(SourceOutput::Reconnect { after });
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.state = State::Finished;
        self.outputs.push_back(SourceOutput::Finished(outcome));
    }
}

/// 100 ms, then twice as long each time, up to 3.2 s.
fn backoff(attempts: u32) -> Duration {
    Duration::from_millis(50 << attempts.min(6))
}

fn describe(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Aborted { detail, .. } | Outcome::Undecided { detail } => detail,
    }
}
