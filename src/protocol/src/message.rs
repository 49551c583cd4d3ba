//! What the two sides say to each other on the control stream.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, MigrationId, Token};
use crate::pages::RamLayout;
use crate::storage::{JobKey, Settlement};
use crate::trace::TraceParent;
use crate::version::{Agreed, Speaks};

pub use crate::version::VERSION;

/// Whether the guest's vCPUs were running or paused when the migration began; it is the same
/// after it, wherever the guest then is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Running.
    Running,
    /// Paused by an operator.
    Paused,
}

/// What the destination must be able to build before pages are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmShape {
    /// Where RAM lies.
    pub ram: RamLayout,
    /// Virtual processors.
    pub vcpus: u32,
    /// Names of the processor features that the guest has seen.
    pub cpu_features: Vec<String>,
    /// The machine's configuration, opaque to the protocol.
    pub config: Vec<u8>,
    /// Running or paused.
    pub run_state: RunState,
}

/// Why a side gave up, as a stable number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortCode {
    /// An operator cancelled.
    Cancelled,
    /// The peer does not speak this version.
    Version,
    /// The token is not the one expected.
    Token,
    /// The destination cannot run this VM.
    Refused,
    /// A message that does not fit here, or that makes no sense.
    Protocol,
    /// The migration would not converge.
    NotConverging,
    /// Something failed on the side that says so.
    Failed,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Source: first of all.
    Hello(Hello),
    /// Destination: version and token are right.
    Welcome {
        /// Its software, for people.
        software: String,
        /// What is spoken from here on.
        agreed: Agreed,
    },
    /// Source: what is to be moved.
    Offer(Box<VmShape>),
    /// Destination: the empty machine is ready.
    Accept,
    /// Source: pass `pass` begins. Informative.
    PassBegin {
        /// From 1.
        pass: u32,
        /// Pages that may have changed.
        pages: u64,
    },
    /// Destination: these chunks are in RAM.
    Ack {
        /// In any order.
        chunks: Vec<ChunkId>,
    },
    /// Source: vCPU and device state, guest paused.
    State {
        /// Opaque to the protocol.
        blob: Vec<u8>,
        /// xxh3-64 of it.
        digest: u64,
    },
    /// Source: that was all.
    AllSent {
        /// Chunks sent since the start.
        chunks: u64,
    },
    /// Destination: all is here, checked, and `prepared` is on disk.
    Prepared(Prepared),
    /// Source: `relinquished` is on disk; the guest is yours.
    Commit,
    /// Destination: `owner` is on disk and the guest runs (or stays paused, as it was).
    Resumed(Resumed),
    /// Source, after `AllSent`: these unsettled storage jobs will not change a disk any more. Said
    /// again after a reconnect, until the destination has it on disk.
    Settled {
        /// In any order.
        settlements: Vec<Settlement>,
    },
    /// Destination: what was said of these jobs is on disk.
    SettledAck {
        /// In any order.
        jobs: Vec<JobKey>,
    },
    /// Forgotten here; the connection may go. The source says it after `Resumed`, the destination
    /// when it has discarded the machine, so that the source knows that nothing is left there.
    Bye,
    /// Either side gives up. Not said by a source that has relinquished.
    Abort {
        /// Why.
        code: AbortCode,
        /// The phase in which it happened, in a word.
        phase: String,
        /// In words.
        detail: String,
    },
    /// Destination's operator asks the source to cancel.
    CancelRequest,
    /// Source: a new connection of a migration that was cut when the destination may have been
    /// prepared. `Commit` or `Abort` follows.
    Rejoin {
        /// Which.
        migration: MigrationId,
        /// Its token.
        token: Token,
    },
    /// Are you there?
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// I am.
    Pong {
        /// Of the ping.
        nonce: u64,
    },
    /// Destination, while pages come and where [`Features::LOAD`](crate::version::Features::LOAD)
    /// is agreed: how much it has to do with them. Informative.
    Load(Load),
}

impl Message {
    /// The kind of message, in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome { .. } => "Welcome",
            Self::Offer(_) => "Offer",
            Self::Accept => "Accept",
            Self::PassBegin { .. } => "PassBegin",
            Self::Ack { .. } => "Ack",
            Self::State { .. } => "State",
            Self::AllSent { .. } => "AllSent",
            Self::Prepared(_) => "Prepared",
            Self::Commit => "Commit",
            Self::Resumed(_) => "Resumed",
            Self::Settled { .. } => "Settled",
            Self::SettledAck { .. } => "SettledAck",
            Self::Bye => "Bye",
            Self::Abort { .. } => "Abort",
            Self::CancelRequest => "CancelRequest",
            Self::Rejoin { .. } => "Rejoin",
            Self::Ping { .. } => "Ping",
            Self::Pong { .. } => "Pong",
            Self::Load(_) => "Load",
        }
    }
}

/// The source's first words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// What it speaks. First, so that any version can read it.
    pub speaks: Speaks,
    /// Its software, for people.
    pub software: String,
    /// The migration.
    pub migration: MigrationId,
    /// The destination's one-time secret.
    pub token: Token,
    /// Page streams it will use.
    pub streams: u16,
    /// The migration's span, where somebody traces it. Changes nothing.
    pub trace: Option<TraceParent>,
}

/// How much the destination has to do with the pages that come, over the last moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Of the time, in which a thread that receives and applies pages had a processor or waited
    /// for one, per mille, on average over these threads. Near 1000 it is they that everything
    /// waits for; near 0 they wait for pages.
    pub wanted: u16,
}

/// What the destination spent while the guest was paused, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Setting vCPU and device state, as far as it was not done before the last pages had come.
    pub restore_us: u64,
    /// Writing `prepared` to disk.
    pub flush_us: u64,
}

/// The same after the commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Writing `owner` to disk.
    pub flush_us: u64,
    /// Starting the vCPUs.
    pub resume_us: u64,
}
