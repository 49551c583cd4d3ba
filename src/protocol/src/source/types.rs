//! What goes into a source and what comes out of it. Plain data, no decisions.

use std::time::Duration;

use crate::ids::{ChunkId, MigrationId, Token};
use crate::message::{AbortCode, Load, Message, VmShape};
use crate::ownership::{Persist, Stored};
use crate::pages::PageSet;
use crate::pending::Chunk;
use crate::policy::Limits;
use crate::storage::{JobKey, JobRecord, Settlement};
use crate::trace::TraceParent;

/// What a source must know before it begins.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The migration.
    pub migration: MigrationId,
    /// The destination's secret.
    pub token: Token,
    /// Page streams.
    pub streams: u16,
    /// The VM.
    pub shape: VmShape,
    /// The operator's limits.
    pub limits: Limits,
    /// Most pages on their way at once: this bounds the memory of both sides.
    pub window_pages: u64,
    /// Costs of a switchover that do not depend on memory, beside round trips.
    pub fixed_cost: Duration,
    /// The connection counts as lost after this silence.
    pub silence: Duration,
    /// The guest is not paused for longer than this before the source gives up.
    pub pause_deadline: Duration,
    /// Whether the tracker can slow writers down.
    pub can_throttle: bool,
    /// How long to try to reach the destination again once the right to run was given up.
    pub reconnect_for: Duration,
    /// Name and version of the software, for people.
    pub software: String,
    /// The migration's span, for the destination.
    pub trace: Option<TraceParent>,
}

/// What has happened.
#[derive(Debug)]
pub enum SourceEvent {
    /// A connection stands (the first, or one that was asked for by `Reconnect`).
    Connected,
    /// There is none any more, or none could be made.
    ConnectionLost {
        /// Why.
        detail: String,
    },
    /// A harvest is done.
    Harvested {
        /// Pages that may have changed.
        dirty: PageSet,
        /// Write notifications paid by the guest since the last one.
        notifications: u64,
        /// How long writers waited for them, as far as the tracker knows.
        stall: Duration,
        /// Pages that are protected together from here on, aligned to their number within their
        /// region; 1 where each is by itself.
        group_pages: u64,
    },
    /// A chunk was handed to a page stream.
    ChunkSent(ChunkStats),
    /// Every page of a chunk holds what the destination has: there is nothing to send.
    ChunkUnchanged(ChunkStats),
    /// The vCPUs stand still.
    Paused,
    /// Storage IO is cancelled, as far as it could be at once.
    IoCancelled {
        /// What had not ended.
        jobs: Vec<JobRecord>,
    },
    /// Jobs that were handed over as unsettled will not change a disk any more.
    IoSettled(Vec<Settlement>),
    /// The destination knows of the end of these jobs: it has confirmed by another way than the
    /// control stream.
    SettledThere(Vec<JobKey>),
    /// vCPU and device state.
    StateSaved {
        /// Opaque.
        blob: Vec<u8>,
    },
    /// A record is on disk.
    Persisted(Stored),
    /// A record could not be written.
    PersistFailed {
        /// Why.
        detail: String,
    },
    /// The guest runs here again (or stays paused, as it was).
    Resumed,
    /// The guest cannot be let run again.
    ResumeFailed {
        /// Why.
        detail: String,
    },
    /// An operator cancels.
    CancelRequested,
    /// Something that was asked for could not be done.
    Failed {
        /// What and why.
        detail: String,
    },
}

/// How a chunk was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStats {
    /// The chunk.
    pub chunk: ChunkId,
    /// Bytes on the stream, header included.
    pub bytes_wire: u64,
    /// Bytes of encoded content.
    pub bytes_encoded: u64,
    /// The codec that encoded it.
    pub codec: u8,
    /// Pages with content.
    pub pages_data: u64,
    /// Pages that were zero.
    pub pages_zero: u64,
    /// Pages left out, as the destination has them.
    pub pages_unchanged: u64,
    /// Time to read and compare the pages.
    pub read: Duration,
    /// Processor time of that.
    pub read_ran: Duration,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum SourceOutput {
    /// Send on the control stream.
    Send(Message),
    /// Ask the tracker which pages may have changed (and start it, for pass 1).
    Harvest {
        /// The pass.
        pass: u32,
    },
    /// Protect, read, encode, send.
    SendChunk(Chunk),
    /// Let writers make only so many pages writable in a second, or as many as they like.
    Throttle {
        /// All writers together.
        pages_per_second: Option<u64>,
    },
    /// How much the destination has to do with the pages that come, as it says.
    PeerLoad(Load),
    /// Stop the vCPUs.
    Pause,
    /// Cancel storage IO.
    CancelIo,
    /// Save vCPU and device state.
    SaveState,
    /// Put a record on disk.
    Persist(Persist),
    /// The migration is off: end tracking, and let the guest run on if `run`.
    ResumeGuest {
        /// Whether it ran before.
        run: bool,
    },
    /// Close the connection, if one stands, and connect again after a while.
    Reconnect {
        /// How long to wait first.
        after: Duration,
    },
    /// The guest is the destination's; drop it here.
    ForgetVm,
    /// Over.
    Finished(Outcome),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the destination.
    Completed,
    /// The guest is at the source, as before.
    Aborted {
        /// Why, as a number.
        code: AbortCode,
        /// In words.
        detail: String,
    },
    /// The right to run was given up, and the destination did not confirm in time. The guest
    /// stays paused; an operator decides.
    Undecided {
        /// In words.
        detail: String,
    },
}
