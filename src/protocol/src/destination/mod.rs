//! The destination's half of a migration as a state machine without IO.
//!
//! Called in the same order as [`crate::source::Source`]: tell it what happened, then poll
//! outputs until there is none, then wait no longer than it says.
//!
//! `Connected` is told when TLS stands; whether it is the source, the core finds out. A connection
//! that is told while another stands takes its place. `AwaitReconnect` means: close what there is,
//! and accept the next. Chunks are told when they are in RAM, each once, and only those that came
//! on page streams with this migration's preamble. A prepared destination may wait for very long:
//! only the source's word or the end of its process frees the machine.

mod decide;
mod storage;
mod timeline;
mod types;

use std::collections::VecDeque;
use std::time::Duration;

pub use timeline::Timeline;
pub use types::{DestinationConfig, DestinationEvent, DestinationOutcome, DestinationOutput};

use crate::ids::{ChunkId, MigrationId, Time, Token};
use crate::message::{AbortCode, Hello, Message, Prepared, Resumed, RunState};
use crate::ownership::{Persist, Record, Stored};
use crate::trace::TraceParent;
use crate::version::{Features, Speaks, negotiate};
use crate::wire::digest;
use storage::{Adopted, micros};

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitOffer,
    Preparing,
    Receiving,
    Restoring,
    /// `prepared` is being written.
    WritingPrepared,
    /// Ready; only the source can decide now.
    Prepared,
    /// `owner` is being written.
    TakingOver,
    Resuming,
    Owner {
        until: Time,
        /// The source has nothing more to say.
        bye: bool,
    },
    /// `discarded` is being written.
    Discarding {
        detail: String,
    },
    Finished,
}

/// The destination.
#[derive(Debug)]
pub struct Destination {
    config: DestinationConfig,
    state: State,
    outputs: VecDeque<DestinationOutput>,
    acks: Vec<ChunkId>,
    migration: Option<MigrationId>,
    features: Features,
    run_state: RunState,
    applied: u64,
    expected: Option<u64>,
    blob: Option<Vec<u8>>,
    connected: bool,
    /// The peer at the other end of this connection has shown the token.
    joined: bool,
    last_heard: Time,
    prepared: Prepared,
    resumed: Resumed,
    adopted: Adopted,
    timeline: Timeline,
}

const PERSIST_AGAIN: Duration = Duration::from_secs(1);
/// Most acknowledgements in one message.
const ACKS_A_MESSAGE: usize = 1024;

impl Destination {
    /// A destination that waits for its source.
    #[must_use]
    pub fn new(config: DestinationConfig, now: Time) -> Self {
        Self {
            config,
            state: State::AwaitHello,
            outputs: VecDeque::new(),
            acks: Vec::new(),
            migration: None,
            features: Features::default(),
            run_state: RunState::Paused,
            applied: 0,
            expected: None,
            blob: None,
            connected: false,
            joined: false,
            last_heard: now,
            prepared: Prepared::default(),
            resumed: Resumed::default(),
            adopted: Adopted::default(),
            timeline: Timeline::default(),
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<DestinationOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if !self.connected {
            return None;
        }
        self.take_acks().map(DestinationOutput::Send)
    }

    fn take_acks(&mut self) -> Option<Message> {
        let n = self.acks.len().min(ACKS_A_MESSAGE);
        let chunks: Vec<ChunkId> = self.acks.drain(..n).collect();
        (!chunks.is_empty()).then_some(Message::Ack { chunks })
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let silence = self
            .connected
            .then(|| self.last_heard + self.config.silence);
        match self.state {
            State::Finished => None,
            _ => silence.into_iter().chain(self.lingers_until()).min(),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.connected && now >= self.last_heard + self.config.silence {
            let detail = format!(
                "the source has been silent for {} s",
                self.config.silence.as_secs_f64()
            );
            self.silent(detail);
        }
        if self.lingers_until().is_some_and(|until| now >= until) {
            self.finish(DestinationOutcome::Completed);
        }
    }

    /// Something has happened.
    pub fn handle_event(&mut self, now: Time, event: DestinationEvent) {
        match (event, &self.state) {
            (_, State::Finished) => {}
            (DestinationEvent::Connected, _) => {
                self.connected = true;
                self.joined = false;
                if self.state == State::AwaitHello {
                    self.timeline.connected = now;
                }
                self.last_heard = now;
            }
            (DestinationEvent::ConnectionLost { detail }, _) => self.connection_lost(detail),
            (DestinationEvent::MachineReady, State::Preparing) => {
                self.timeline.machine_made = now;
                self.state = State::Receiving;
                self.send(Message::Accept);
            }
            (DestinationEvent::MachineRefused { detail }, State::Preparing) => {
                self.fail(AbortCode::Refused, detail);
            }
            (DestinationEvent::ChunksApplied(chunks), State::Receiving) => {
                if self.applied == 0 {
                    self.timeline.first_page = now;
                }
                self.applied += chunks.len() as u64;
                self.acks.extend(chunks);
                self.restore_if_complete(now);
            }
            (DestinationEvent::Load(load), State::Receiving)
                if Features::LOAD.missing_in(self.features).is_empty() =>
            {
                self.send(Message::Load(load));
            }
            (
                DestinationEvent::ChunksApplied(_),
                State::AwaitOffer | State::Preparing | State::Restoring | State::WritingPrepared,
            ) => {
                let detail = "pages came before they were asked for, or after all had come";
                self.fail(AbortCode::Protocol, detail.to_owned());
            }
            (DestinationEvent::StateRestored { took, jobs }, State::Restoring) => {
                self.timeline.restored = now;
                self.timeline.took_over(&jobs);
                self.prepared.restore_us = micros(took);
                self.adopted = Adopted::new(jobs);
                self.state = State::WritingPrepared;
                if let Some(migration) = self.migration {
                    self.persist_prepared(migration);
                }
            }
            (DestinationEvent::JobsCompleted(keys), _) => self.jobs_completed(now, &keys),
            (DestinationEvent::Persisted { stored, took }, _) => {
                self.persisted(now, &stored, took);
            }
            (DestinationEvent::PersistFailed { detail }, _) => self.persist_failed(detail),
            (DestinationEvent::Resumed { took }, State::Resuming) => {
                self.timeline.resumed = now;
                self.resumed.resume_us = micros(took);
                self.linger(now);
                self.outputs.push_back(DestinationOutput::Arrived);
                self.send(Message::Resumed(self.resumed));
                self.write_next();
            }
            (DestinationEvent::CancelRequested, _) => self.cancel(),
            (DestinationEvent::Failed { detail }, _) => self.fail(AbortCode::Failed, detail),
            // Answers to what was asked before a failure.
            _ => {}
        }
    }

    /// The source has said something.
    pub fn handle_message(&mut self, now: Time, message: Message) {
        self.last_heard = now;
        match (message, &self.state) {
            (_, State::Finished | State::Discarding { .. }) => {}
            (Message::Ping { nonce }, _) => self.send(Message::Pong { nonce }),
            // Whoever connects again shows the token before anything else counts.
            (Message::Rejoin { migration, token }, _) => self.rejoin(migration, &token),
            (_, state) if !self.joined && *state != State::AwaitHello => self.refuse_stranger(),
            (Message::Pong { .. } | Message::PassBegin { .. }, _) => {}
            (Message::Hello(hello), State::AwaitHello) => self.hello(hello),
            (Message::Offer(shape), State::AwaitOffer) => {
                self.timeline.offered = now;
                self.run_state = shape.run_state;
                self.state = State::Preparing;
                self.outputs
                    .push_back(DestinationOutput::PrepareMachine(shape));
            }
            (Message::State { blob, digest: d }, State::Receiving) if self.blob.is_none() => {
                if digest(&blob) == d {
                    self.blob = Some(blob);
                    self.restore_if_complete(now);
                } else {
                    let detail = "the state was damaged on the way".to_owned();
                    self.fail(AbortCode::Protocol, detail);
                }
            }
            (Message::AllSent { chunks }, State::Receiving) if self.expected.is_none() => {
                self.expected = Some(chunks);
                self.restore_if_complete(now);
            }
            (Message::Commit, State::Prepared) => self.commit(),
            // Said again after a reconnect.
            (Message::Commit, State::TakingOver | State::Resuming) => {}
            (Message::Commit, State::Owner { .. }) => self.send(Message::Resumed(self.resumed)),
            (
                Message::Settled { settlements },
                State::Prepared | State::TakingOver | State::Resuming | State::Owner { .. },
            ) => self.told_settled(now, settlements),
            (Message::Bye, State::Owner { .. }) => self.source_said_bye(),
            (
                Message::Abort {
                    code,
                    phase,
                    detail,
                },
                _,
            ) => {
                self.timeline.cancelled |= code == AbortCode::Cancelled;
                let detail = format!("the source gave up ({code:?}, {phase}): {detail}");
                self.source_gave_up(detail);
            }
            (other, state) => {
                let detail = format!("{} makes no sense in {state:?}", other.name());
                self.fail(AbortCode::Protocol, detail);
            }
        }
    }

    /// When things happened.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What it spent while the guest was paused.
    #[must_use]
    pub fn spent(&self) -> (Prepared, Resumed) {
        (self.prepared, self.resumed)
    }

    /// Whether the guest may run here.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        matches!(self.state, State::Resuming | State::Owner { .. })
    }

    fn send(&mut self, message: Message) {
        if self.connected {
            self.outputs.push_back(DestinationOutput::Send(message));
        }
    }

    fn hello(&mut self, hello: Hello) {
        let agreed = match negotiate(&Speaks::CURRENT, &hello.speaks) {
            Ok(agreed) => agreed,
            Err(wrong) => {
                let detail = format!("the source ({}) does not fit: {wrong}", hello.software);
                return self.fail(AbortCode::Version, detail);
            }
        };
        if !hello.token.matches(&self.config.token) {
            let detail = "the source does not show the token of this migration".to_owned();
            return self.fail(AbortCode::Token, detail);
        }
        self.joined = true;
        self.features = agreed.features;
        self.migration = Some(hello.migration);
        self.timeline.migration = self.migration;
        self.timeline.trace = hello.trace.filter(TraceParent::is_valid);
        self.state = State::AwaitOffer;
        self.outputs.push_back(DestinationOutput::Admit {
            migration: hello.migration,
            streams: hello.streams,
        });
        let software = self.config.software.clone();
        self.send(Message::Welcome { software, agreed });
    }

    fn rejoin(&mut self, migration: MigrationId, token: &Token) {
        if self.migration == Some(migration) && token.matches(&self.config.token) {
            self.joined = true;
        } else {
            self.refuse_stranger();
        }
    }

    /// A connection that does not belong to this migration: it changes nothing.
    fn refuse_stranger(&mut self) {
        self.send(Message::Abort {
            code: AbortCode::Token,
            phase: "Rejoin".to_owned(),
            detail: "a connection that does not belong to this migration".to_owned(),
        });
        self.connected = false;
        self.outputs.push_back(DestinationOutput::AwaitReconnect);
    }

    fn restore_if_complete(&mut self, now: Time) {
        let (Some(expected), true) = (self.expected, self.blob.is_some()) else {
            return;
        };
        if self.applied > expected {
            let detail = format!(
                "{} chunks came, the source says it sent {expected}",
                self.applied
            );
            return self.fail(AbortCode::Protocol, detail);
        }
        if self.applied == expected
            && let Some(blob) = self.blob.take()
        {
            self.timeline.all_pages = now;
            self.state = State::Restoring;
            self.outputs
                .push_back(DestinationOutput::RestoreState { blob });
        }
    }

    fn commit(&mut self) {
        self.state = State::TakingOver;
        self.persist(Record::Owner);
    }

    fn persist(&mut self, record: impl Fn(MigrationId) -> Record) {
        if let Some(migration) = self.migration {
            let persist = Persist::new(record(migration));
            self.outputs.push_back(DestinationOutput::Persist(persist));
        }
    }

    fn persisted(&mut self, now: Time, stored: &Stored, took: Duration) {
        match (stored.record(), &self.state) {
            (Some(Record::Prepared(_)), State::WritingPrepared) => {
                self.timeline.prepared = now;
                self.prepared.flush_us = micros(took);
                self.state = State::Prepared;
                let prepared = self.prepared;
                if self.connected {
                    // No acknowledgement may come after this, however the driver polls.
                    while let Some(acks) = self.take_acks() {
                        self.send(acks);
                    }
                    self.send(Message::Prepared(prepared));
                } else {
                    self.outputs.push_back(DestinationOutput::AwaitReconnect);
                }
            }
            (Some(Record::Owner(_)), State::TakingOver) => {
                self.timeline.owner = now;
                self.resumed.flush_us = micros(took);
                self.state = State::Resuming;
                let run = self.run_state == RunState::Running;
                self.outputs
                    .push_back(DestinationOutput::ResumeGuest { run });
            }
            (Some(Record::Discarded(_)), State::Discarding { detail }) => {
                let detail = detail.clone();
                self.discard(detail);
            }
            (_, State::Owner { .. }) => self.jobs_written(stored.records()),
            _ => {}
        }
    }

    fn persist_failed(&mut self, detail: String) {
        match &self.state {
            State::WritingPrepared => {
                let detail = format!("the journal could not be written: {detail}");
                self.fail(AbortCode::Failed, detail);
            }
            State::TakingOver => {
                // The source has given the guest up and nobody else can run it: keep trying.
                if let Some(migration) = self.migration {
                    self.outputs.push_back(DestinationOutput::PersistLater {
                        persist: Persist::new(Record::Owner(migration)),
                        after: PERSIST_AGAIN,
                    });
                }
            }
            State::Discarding { detail } => {
                let detail = detail.clone();
                self.discard(detail);
            }
            State::Owner { .. } => self.jobs_not_written(),
            _ => {}
        }
    }

    /// The source may still hear, though it says nothing: it is told why, where this ends it.
    fn silent(&mut self, detail: String) {
        match self.state {
            State::AwaitHello
            | State::AwaitOffer
            | State::Preparing
            | State::Receiving
            | State::Restoring => {
                let detail = format!("the connection to the source was lost: {detail}");
                self.fail(AbortCode::Failed, detail);
            }
            _ => self.connection_lost(detail),
        }
    }

    fn connection_lost(&mut self, detail: String) {
        self.connected = false;
        match self.state {
            // Asks for a new connection when the record is on disk.
            State::WritingPrepared | State::Finished => {}
            State::Prepared | State::TakingOver | State::Resuming | State::Owner { .. } => {
                self.outputs.push_back(DestinationOutput::AwaitReconnect);
            }
            State::Discarding { .. } => {}
            _ => self.discard(format!("the connection to the source was lost: {detail}")),
        }
    }

    fn cancel(&mut self) {
        match self.state {
            State::AwaitHello => {
                self.timeline.cancelled = true;
                self.discard("cancelled".to_owned());
            }
            // The source decides: it alone knows whether it may still go back.
            _ if self.connected => self.send(Message::CancelRequest),
            _ => {}
        }
    }

    /// Gives up, if that is still allowed.
    fn fail(&mut self, code: AbortCode, detail: String) {
        let phase = format!("{:?}", self.state);
        match self.state {
            // Once prepared, only the source may end it.
            State::Prepared
            | State::TakingOver
            | State::Resuming
            | State::Owner { .. }
            | State::Discarding { .. }
            | State::Finished => return,
            _ => {}
        }
        self.send(Message::Abort {
            code,
            phase,
            detail: detail.clone(),
        });
        if self.state == State::WritingPrepared {
            self.begin_discard(detail);
        } else {
            self.discard(detail);
        }
    }

    fn source_gave_up(&mut self, detail: String) {
        match self.state {
            State::WritingPrepared | State::Prepared => self.begin_discard(detail),
            // It has no right to after the commit; the guest is here.
            State::TakingOver | State::Resuming | State::Owner { .. } => {}
            _ => self.discard(detail),
        }
    }

    /// `prepared` is or may be on disk: it must be taken back there too.
    fn begin_discard(&mut self, detail: String) {
        self.state = State::Discarding { detail };
        self.persist(Record::Discarded);
    }

    fn discard(&mut self, detail: String) {
        self.acks.clear();
        self.outputs.push_back(DestinationOutput::Discard);
        if self.joined {
            self.send(Message::Bye);
        }
        self.finish(DestinationOutcome::Aborted { detail });
    }

    pub(super) fn finish(&mut self, outcome: DestinationOutcome) {
        self.state = State::Finished;
        self.outputs.push_back(DestinationOutput::Finished(outcome));
    }
}
