//! What goes into a destination and what comes out of it. Plain data, no decisions.

use std::time::Duration;

use crate::ids::{ChunkId, MigrationId, Token};
use crate::message::{Load, Message, VmShape};
use crate::ownership::{Persist, Stored};
use crate::storage::{JobKey, JobRecord, Settlement};

/// What a destination must know before it begins.
#[derive(Clone, Debug)]
pub struct DestinationConfig {
    /// The one-time secret that the source must show.
    pub token: Token,
    /// The connection counts as lost after this silence.
    pub silence: Duration,
    /// How long the destination stays reachable after the guest runs, for a source that has not
    /// heard of it yet.
    pub linger: Duration,
    /// Name and version of the software, for people.
    pub software: String,
}

/// What has happened.
#[derive(Debug)]
pub enum DestinationEvent {
    /// The source has connected (again).
    Connected,
    /// There is no connection any more.
    ConnectionLost {
        /// Why.
        detail: String,
    },
    /// The empty machine is made.
    MachineReady,
    /// This host cannot run it.
    MachineRefused {
        /// In words, all that is wrong.
        detail: String,
    },
    /// These chunks are in RAM.
    ChunksApplied(Vec<ChunkId>),
    /// How much there is to do with the pages that come. Of no consequence here.
    Load(Load),
    /// State is set.
    StateRestored {
        /// How long it took.
        took: Duration,
        /// Storage jobs that came with it.
        jobs: Vec<JobRecord>,
    },
    /// The guest has been told how these storage jobs ended, which came with it.
    JobsCompleted(Vec<JobKey>),
    /// A record is on disk.
    Persisted {
        /// The proof.
        stored: Stored,
        /// How long it took.
        took: Duration,
    },
    /// A record could not be written.
    PersistFailed {
        /// Why.
        detail: String,
    },
    /// The vCPUs run (or stay paused, as they were).
    Resumed {
        /// How long it took.
        took: Duration,
    },
    /// An operator cancels here.
    CancelRequested,
    /// Something that was asked for could not be done.
    Failed {
        /// What and why.
        detail: String,
    },
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum DestinationOutput {
    /// Send on the control stream.
    Send(Message),
    /// The source has shown the token: its page streams may be accepted for this migration.
    Admit {
        /// The migration.
        migration: MigrationId,
        /// How many streams.
        streams: u16,
    },
    /// Make an empty machine of this shape.
    PrepareMachine(Box<VmShape>),
    /// All pages are in RAM: set this state.
    RestoreState {
        /// Opaque.
        blob: Vec<u8>,
    },
    /// Put a record on disk.
    Persist(Persist),
    /// Put a record on disk, after a while: it failed just now.
    PersistLater {
        /// The record.
        persist: Persist,
        /// How long to wait first.
        after: Duration,
    },
    /// Storage jobs of the source will not change a disk any more: what waits for them need not.
    Settle(Vec<Settlement>),
    /// The guest is this host's: let it run, if `run`; its storage jobs go on in any case.
    ResumeGuest {
        /// Whether it ran before.
        run: bool,
    },
    /// The guest runs here. The migration is still to be closed.
    Arrived,
    /// Drop the machine.
    Discard,
    /// Let the source connect again.
    AwaitReconnect,
    /// Over.
    Finished(DestinationOutcome),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationOutcome {
    /// The guest runs here.
    Completed,
    /// It does not; the machine was dropped.
    Aborted {
        /// In words.
        detail: String,
    },
}
