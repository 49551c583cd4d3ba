//! What a VM process can be asked over its control socket, and what it answers.
//!
//! One JSON object a line, both ways. A request carries a number that its answer repeats; events
//! come in between, to whoever has subscribed. The socket lies in the VM's own directory, which
//! only its owner may enter: whoever reaches it may do everything with the VM.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmferry_engine::report::{DestinationTimeline, MigrationReport};
use vmferry_engine::{Budget, source};
use vmferry_machine::{Beat, Console, DiskStats, MachineConfig};
use vmferry_protocol::source::PassProgress;
use vmferry_protocol::storage::{JobKey, Settlement};

/// Longest line accepted, in bytes.
pub const MAX_LINE: usize = 4 << 20;

/// A numbered request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the client, repeated in the answer.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Make the machine (once) and boot it.
    Boot(Box<MachineConfig>),
    /// Stop the vCPUs.
    Pause,
    /// Let them run on.
    Resume,
    /// Be the destination of one migration.
    Receive(ReceiveOptions),
    /// Move the machine away.
    Migrate(MigrateOptions),
    /// Cancel the migration under way, on whichever side.
    Cancel,
    /// Send no faster than this, in the migration under way from here.
    Limit {
        /// In Mbit/s; 0 is no limit.
        link_mbit: u64,
    },
    /// Say something to the built-in workload.
    Workload(WorkloadCommand),
    /// How the machine's disks are doing.
    Storage,
    /// Let go on what waits for writes that the guest's former host had in flight. Without the
    /// operator's word it is refused, and the risk is told.
    SettleStorage {
        /// The operator has made sure that neither that host nor the storage on its behalf will
        /// carry out such a write any more.
        nobody_else_writes: bool,
    },
    /// An operator decides where the guest of a handover runs that neither side can know the end
    /// of. Whoever asks this vouches that the other host does not run it, and never will, or that
    /// it does.
    Decide {
        /// The migration.
        migration: String,
        /// Here, or at the other host.
        here: bool,
    },
    /// Storage jobs of the migration that leaves here which have ended, and of which the
    /// destination has not confirmed that it knows.
    Unconfirmed,
    /// It has confirmed these, by another way than the control stream.
    SettledThere {
        /// Which.
        keys: Vec<JobKey>,
    },
    /// The former host tells which of its storage jobs have ended.
    ToldSettled {
        /// The migration by which the guest came.
        migration: String,
        /// They.
        settlements: Vec<Settlement>,
    },
    /// The heartbeats noted since a moment of CLOCK_MONOTONIC, by vCPU; of the last machine where
    /// there is none any more.
    Heartbeats {
        /// In nanoseconds.
        since_ns: u64,
    },
    /// The same of the workload's disk IO: how many requests were completed, and when.
    DiskBeats {
        /// In nanoseconds.
        since_ns: u64,
    },
    /// How the machine, the migration and the process are.
    Status,
    /// What another host has to know of the machine before it could take it, and whether it can
    /// leave this one.
    Inspect,
    /// From now on, send events on this connection.
    Subscribe,
    /// End the machine and the process.
    Shutdown,
}

/// Things to say to the built-in workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadCommand {
    /// Verify all RAM, and all blocks of the disk that nothing is in flight for; the result is an
    /// event.
    Verify,
    /// The same when everything in flight has ended, and then all blocks.
    VerifySettled,
}

/// PEM files that a VM process shows to its peer and checks the peer by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TlsFiles {
    /// The certificates that are trusted.
    pub ca: PathBuf,
    /// This host's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Options of the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiveOptions {
    /// `quic` or `tcp`.
    pub transport: String,
    /// Address to listen on; port 0 is any.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsFiles,
    /// One-time secret that the source must show, 32 hexadecimal digits.
    pub token: String,
    /// Speed of the link in Mbit/s, for the size of windows; 0 is unknown.
    pub link_mbit: u64,
    /// The migration's id, 32 hexadecimal digits, where it is known: its end is written down by
    /// that name.
    #[serde(default)]
    pub migration: Option<String>,
    /// The reception is given up where nobody has offered a machine after so many seconds; none:
    /// never.
    #[serde(default)]
    pub come_within_s: Option<u64>,
    /// The machine that is to come, consoles aside; any, where nothing is said.
    #[serde(default)]
    pub machine: Option<Box<MachineConfig>>,
    /// Where the serial console goes here, as the source's files may not exist on this host.
    pub serial: Console,
    /// The same for the debug port.
    pub debugcon: Console,
}

/// Options of the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateOptions {
    /// The migration's id, 32 hexadecimal digits; a random one where there is none.
    #[serde(default)]
    pub migration: Option<String>,
    /// `quic` or `tcp`.
    pub transport: String,
    /// Where the destination listens.
    pub to: SocketAddr,
    /// The name its certificate must bear.
    pub server_name: String,
    /// Certificates.
    pub tls: TlsFiles,
    /// The destination's one-time secret.
    pub token: String,
    /// Page streams.
    pub streams: u16,
    /// As `--codec`, `auto` included.
    pub codec: String,
    /// Most MiB of earlier versions of pages kept at the source, to send differences.
    #[serde(default = "delta_cache_mib")]
    pub delta_cache_mib: u32,
    /// Compressor threads; 0: as many as processors, four at most.
    #[serde(default)]
    pub compressors: u16,
    /// What the compressors of all migrations of this host share; none: nothing.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// As `--tracker`, `auto` included.
    pub tracker: String,
    /// As `--group`.
    pub group: String,
    /// How much of a writer's time it may be made to wait, in per cent; 0: never, 100: as much
    /// as it takes.
    pub throttle_pct: u8,
    /// Fewest passes before the pause.
    pub min_passes: u32,
    /// Limit in Mbit/s; 0 is none.
    pub link_mbit: u64,
    /// Longest blackout to accept, in milliseconds.
    pub max_blackout_ms: f64,
    /// W3C `traceparent` of the migration's span, for the destination.
    #[serde(default)]
    pub traceparent: Option<String>,
}

fn delta_cache_mib() -> u32 {
    (source::DELTA_CACHE_BYTES >> 20) as u32
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Unconfirmed`].
    Unconfirmed(Vec<Settlement>),
    /// To [`Request::ToldSettled`]: those of which it is on disk here.
    Known {
        /// Which.
        keys: Vec<JobKey>,
    },
    /// Done.
    Done,
    /// Listening for the source at this address.
    Listening {
        /// Address and port really bound.
        address: SocketAddr,
    },
    /// The migration has begun; its end is an event.
    Migrating {
        /// Its id, 32 hexadecimal digits.
        migration_id: String,
    },
    /// By vCPU, in order of time.
    Heartbeats(Vec<Vec<Beat>>),
    /// The state of things.
    Status(Box<Status>),
    /// What there is to move.
    Inspected(Box<Inspection>),
    /// Of all disks together.
    Storage(DiskStats),
    /// So many writes of the former host count as settled.
    Settled {
        /// How many.
        writes: u64,
    },
}

/// How the machine, the migration and the process are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// `none`, `created`, `running`, `paused`, `stopped` or `crashed`.
    pub machine: String,
    /// `kvm` or `process`, where there is a machine.
    pub kind: Option<String>,
    /// Why it stopped or crashed.
    pub detail: Option<String>,
    /// Whether a migration is under way.
    pub migrating: bool,
    /// Which.
    #[serde(default)]
    pub migration: Option<MigrationStatus>,
    /// Open descriptors of the process.
    pub fds: usize,
    /// Threads of the process.
    pub threads: usize,
    /// Resident memory of the process in bytes.
    pub rss_bytes: u64,
}

/// The migration under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// Its id, where it is known.
    pub id: Option<String>,
    /// Whether the machine leaves; otherwise it comes.
    pub leaving: bool,
    /// The last line of progress, at the source.
    pub progress: Option<ProgressLine>,
}

/// What another host has to know of a machine before it could take it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Inspection {
    /// Names of the processor features that the guest has seen.
    pub cpu_features: Vec<String>,
    /// RAM that there is something in, in bytes.
    pub populated_bytes: u64,
    /// Why its disks cannot be used from another host.
    pub disks_stay: Option<String>,
}

/// What a VM process tells its subscribers. The end of a migration is a file in the VM's directory
/// as well, [`crate::ends`], before it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The guest has filled its RAM and works.
    WorkloadReady,
    /// What the guest found in its RAM.
    Verified {
        /// `OK`, `FAIL page N` or `FAIL disk`.
        verdict: String,
    },
    /// How a migration is getting on, several times a second.
    Progress(ProgressLine),
    /// A migration ended at the source.
    Migrated(Box<Migrated>),
    /// The guest runs here; storage jobs of the source may still be in flight.
    Arrived {
        /// When the vCPUs ran again, in nanoseconds of CLOCK_MONOTONIC.
        resumed_ns: u64,
    },
    /// A migration ended at the destination.
    Received {
        /// Whether the guest runs here now.
        completed: bool,
        /// Why not.
        reason: Option<String>,
        /// Storage IO since the guest arrived.
        io: Option<DiskStats>,
        /// Most memory used beyond guest RAM, in bytes.
        peak_extra_rss_bytes: u64,
        /// When the vCPUs ran again, in nanoseconds of CLOCK_MONOTONIC.
        resumed_ns: Option<u64>,
        /// The migration's id, where it was told.
        #[serde(default)]
        migration_id: Option<String>,
        /// When what happened, and which migration and trace it belongs to.
        #[serde(default)]
        timeline: Box<DestinationTimeline>,
    },
    /// The guest crashed or stopped by itself.
    GuestEnded {
        /// Crashed, not stopped.
        crashed: bool,
        /// Why, with registers.
        detail: String,
    },
}

/// The end of a migration, at the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Migrated {
    /// The engine's report; the guest's part is still empty.
    pub report: MigrationReport,
    /// When it began, in nanoseconds of CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When the pause began.
    pub pause_ns: Option<u64>,
}

/// One line of progress.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProgressLine {
    /// What is being done, in a word.
    pub phase: String,
    /// The pass.
    pub pass: u32,
    /// Pages of this pass still to go.
    pub pages_left: u64,
    /// Pages of this pass in all.
    pub pages_total: u64,
    /// Throughput on the wire in bytes per second.
    pub bytes_per_second: f64,
    /// Bytes on the wire so far.
    pub bytes_wire: u64,
    /// The blackout predicted for a switchover now, in milliseconds.
    pub predicted_blackout_ms: Option<f64>,
    /// Storage jobs that the destination waits for, after the guest has left.
    #[serde(default)]
    pub jobs_unsettled: u64,
    /// How long writers have waited for answers to write notifications, in milliseconds.
    pub stall_ms: f64,
    /// How long vCPU threads have waited for a processor, in milliseconds.
    pub run_delay_ms: f64,
    /// The newest passes, the one under way last.
    #[serde(default)]
    pub passes: Vec<PassProgress>,
    /// Encoded bytes so far, by codec.
    #[serde(default)]
    pub bytes_by_codec: BTreeMap<String, u64>,
}

/// A line from a VM process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// An answer.
    Answer {
        /// Number of the request.
        id: u64,
        /// What it was.
        answer: Answer,
    },
    /// A request that could not be carried out.
    Error {
        /// Number of the request.
        id: u64,
        /// Why, and what to do.
        message: String,
    },
    /// An event.
    Event(Event),
}
