//! What the API speaks. Field names are a promise: fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A machine as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name on every host: 1 to 63 lower-case letters, digits and hyphens.
    #[schema(example = "web-1", pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    pub name: String,
    /// `kvm`, `process`, or `auto`: kvm where this host can.
    #[serde(default = "auto")]
    #[schema(pattern = "^(kvm|process|auto)$")]
    pub machine: String,
    /// RAM in MiB, an even number.
    #[schema(example = 512, minimum = 2, maximum = 16777216, multiple_of = 2)]
    pub ram_mib: u64,
    /// Virtual processors, 1 to 8.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 8)]
    pub vcpus: u32,
    /// What it runs.
    #[serde(default)]
    pub boot: BootSpec,
    /// Its disks, at most 8.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub disks: Vec<DiskSpecification>,
    /// Whether it can be tracked by KVM's dirty rings; has to be said at creation.
    #[serde(default)]
    pub dirty_rings: bool,
}

fn auto() -> String {
    "auto".to_owned()
}

fn one() -> u32 {
    1
}

/// What a machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BootSpec {
    /// The built-in workload, for demonstrations and tests.
    Workload {
        /// As in `workload=dense ws-mib=64 rate=0`.
        #[serde(default)]
        #[schema(max_length = 2047, pattern = "^[ -~]*$")]
        cmdline: String,
    },
    /// A kernel that boots by PVH.
    Kernel {
        /// An ELF file.
        #[schema(example = "/var/lib/vmferry/vmlinux", pattern = "^/[ -~]{1,4094}$")]
        kernel: String,
        /// Initial RAM disk.
        #[serde(default)]
        #[schema(pattern = "^/[ -~]{1,4094}$")]
        initrd: Option<String>,
        /// Command line.
        #[serde(default)]
        #[schema(max_length = 2047, pattern = "^[ -~]*$")]
        cmdline: String,
    },
}

impl Default for BootSpec {
    fn default() -> Self {
        Self::Workload {
            cmdline: String::new(),
        }
    }
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpecification {
    /// `file:PATH`, or `nbd:URI`. The same on all hosts that the machine may move to.
    #[schema(
        example = "nbd://storage:10809/web-1",
        pattern = "^(file:/|(nbd:)?nbds?([+]unix)?://)[!-~]{1,4000}$"
    )]
    pub source: String,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Serial id that the guest reads, at most 20 characters.
    #[serde(default)]
    #[schema(pattern = "^[ -~]{0,20}$")]
    pub serial: String,
    /// Virtqueues; as many as vCPUs where nothing is said.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 8)]
    pub queues: Option<u16>,
    /// Each request takes so many milliseconds longer, for demonstrations and tests.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 600000)]
    pub delay_ms: u32,
}

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Its process starts.
    Starting,
    /// Its vCPUs run.
    Running,
    /// They stand still and can run on.
    Paused,
    /// It comes from another host, and is not this host's yet.
    Arriving,
    /// It has been stopped, by its guest or by a user.
    Stopped,
    /// Its guest cannot go on, or its process died.
    Crashed,
    /// It was handed over, and nobody knows yet whether it runs elsewhere.
    Undecided,
    /// It runs elsewhere; its process waits for storage that it had asked for.
    Settling,
}

/// A user decides where a guest is of which neither host of its migration can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Where it is.
    pub guest: Place,
    /// Somebody has made sure of it: where it is here, that the other host does not run it and
    /// never will; where it is elsewhere, that it runs there, or that nobody wants it.
    #[serde(default)]
    pub certain: bool,
}

/// Where a guest is, as one of two hosts sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// At this host.
    Here,
    /// At the other host of its migration.
    Elsewhere,
}

impl VmState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Arriving,
        Self::Stopped,
        Self::Crashed,
        Self::Undecided,
        Self::Settling,
    ];

    /// As the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Arriving => "arriving",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Undecided => "undecided",
            Self::Settling => "settling",
        }
    }
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: VmState,
    /// Why it is so, where there is more to say.
    pub detail: Option<String>,
    /// `kvm` or `process`.
    pub machine: String,
    /// Process that it runs in.
    pub pid: Option<u32>,
    /// The migration that it is part of.
    pub migration: Option<String>,
    /// Its description.
    pub spec: VmSpec,
}

/// A migration, as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationRequest {
    /// A peer's name, as in the configuration, or the URL of its API.
    #[schema(example = "host-b", pattern = "^[!-~]{1,512}$")]
    pub to: String,
    /// How, where it differs from the configuration.
    #[serde(default)]
    pub options: MigrationOptions,
    /// W3C trace context of whoever asks.
    #[serde(default)]
    #[schema(pattern = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    pub traceparent: Option<String>,
}

/// How a machine is moved. What is not said is as configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationOptions {
    /// `quic` or `tcp`.
    #[schema(pattern = "^(quic|tcp)$")]
    pub transport: Option<String>,
    /// Page streams, 1 to 64.
    #[schema(minimum = 1, maximum = 64)]
    pub streams: Option<u16>,
    /// `auto`, `raw`, `lz4`, `zstd[:LEVEL]`, `brotli[:LEVEL]`.
    #[schema(pattern = "^(auto|raw|lz4|zstd(:(-[1-5]|[0-9]))?|brotli(:[0-5])?)$")]
    pub codec: Option<String>,
    /// Most MiB of earlier versions of pages that are kept to send differences, with codec `auto`;
    /// 0 sends none.
    #[schema(minimum = 0, maximum = 65536)]
    pub delta_cache_mib: Option<u32>,
    /// `auto`, `wp-group`, `kvm-log`, `kvm-ring`, `wp-async`.
    #[schema(pattern = "^(auto|wp-group|kvm-log|kvm-ring|wp-async)$")]
    pub tracker: Option<String>,
    /// `auto`, or a size from `4k` to `32m`.
    #[schema(pattern = "^(auto|(4|8|16|32|64|128|256|512)k|(1|2|4|8|16|32)m)$")]
    pub group: Option<String>,
    /// How much of a writer's time it may be made to wait, in per cent.
    #[schema(minimum = 0, maximum = 100)]
    pub throttle_pct: Option<u8>,
    /// Limit in Mbit/s; 0 is none but the host's.
    #[schema(minimum = 0, maximum = 1000000)]
    pub link_mbit: Option<u64>,
    /// Longest blackout to accept, in milliseconds.
    #[schema(exclusive_minimum = 0, maximum = 3600000)]
    pub max_blackout_ms: Option<f64>,
    /// Fewest passes before the pause.
    #[schema(minimum = 1, maximum = 40)]
    pub min_passes: Option<u32>,
}

impl MigrationOptions {
    /// These; where something is not said, as in `others`.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        let words = |own: Option<String>, other: &Option<String>| own.or_else(|| other.clone());
        Self {
            transport: words(self.transport, &others.transport),
            streams: self.streams.or(others.streams),
            codec: words(self.codec, &others.codec),
            delta_cache_mib: self.delta_cache_mib.or(others.delta_cache_mib),
            tracker: words(self.tracker, &others.tracker),
            group: words(self.group, &others.group),
            throttle_pct: self.throttle_pct.or(others.throttle_pct),
            link_mbit: self.link_mbit.or(others.link_mbit),
            max_blackout_ms: self.max_blackout_ms.or(others.max_blackout_ms),
            min_passes: self.min_passes.or(others.min_passes),
        }
    }
}

/// A migration was begun, or waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStarted {
    /// Its id: 32 hexadecimal digits.
    pub id: String,
}

/// How a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    /// It waits for its turn.
    Queued,
    /// Both hosts look whether it can be.
    Preflight,
    /// It is under way.
    Running,
    /// The guest runs at the destination; storage is still at work for the source.
    Settling,
    /// The guest runs at the destination.
    Completed,
    /// Somebody cancelled; the guest runs at the source.
    Cancelled,
    /// The guest runs at the source.
    Failed,
    /// An operator has to find out where the guest may run.
    Undecided,
}

impl MigrationState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Preflight,
        Self::Running,
        Self::Settling,
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
        Self::Undecided,
    ];

    /// As the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preflight => "preflight",
            Self::Running => "running",
            Self::Settling => "settling",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Undecided => "undecided",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Cancelled | Self::Failed | Self::Undecided
        )
    }
}

/// This host's part in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The machine leaves.
    Outgoing,
    /// It comes.
    Incoming,
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The machine.
    pub vm: String,
    /// This host's part.
    pub direction: Direction,
    /// The other host.
    pub peer: String,
    /// How it is.
    pub state: MigrationState,
    /// Why it did not complete.
    pub reason: Option<String>,
    /// When it was asked for: milliseconds since 1970, UTC.
    pub asked_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How it is getting on, at the source.
    pub progress: Option<MigrationProgress>,
    /// The guest's pause, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// From its begin to its end, in milliseconds.
    pub total_ms: Option<f64>,
    /// W3C trace context of its spans.
    pub traceparent: Option<String>,
}

/// How a migration is getting on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationProgress {
    /// What is being done, in a word.
    pub phase: String,
    /// The pass, from 1.
    pub pass: u32,
    /// Pages of this pass still to go.
    pub pages_left: u64,
    /// Pages of this pass in all.
    pub pages_total: u64,
    /// Throughput on the wire, in bytes a second.
    pub bytes_per_second: f64,
    /// Bytes on the wire so far.
    pub bytes_wire: u64,
    /// Blackout of a switchover now, in milliseconds.
    pub predicted_blackout_ms: Option<f64>,
    /// Storage jobs that the destination waits for.
    pub jobs_unsettled: u64,
    /// How long writers have waited for write notifications, in milliseconds.
    pub stall_ms: f64,
    /// How long vCPUs have waited for a processor until the pause, summed, in milliseconds.
    #[serde(default)]
    pub run_delay_ms: f64,
    /// Passes until now, the one under way last; the oldest may be left out.
    #[serde(default)]
    pub passes: Vec<PassProgress>,
    /// Encoded bytes so far, by codec.
    #[serde(default)]
    pub bytes_by_codec: BTreeMap<String, u64>,
}

/// How a pass has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassProgress {
    /// From 1.
    pub pass: u32,
    /// Pages that may have changed before it; in the first all pages.
    pub pages_dirtied: u64,
    /// Pages whose content was sent.
    pub pages_sent: u64,
}

/// Something that stands against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where: `cpu`, `memory`, `disk`, `network`, `certificate`, `version`, `limit`, `state`.
    pub area: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// What a migration would be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Preflight {
    /// Everything that stands against it; none: it can be.
    pub problems: Vec<Problem>,
    /// Throughput between the hosts, as measured, in Mbit/s.
    pub measured_mbit: Option<f64>,
    /// How long it would take, in milliseconds.
    pub predicted_total_ms: Option<f64>,
    /// The guest's pause, in milliseconds.
    pub predicted_blackout_ms: Option<f64>,
    /// What the predictions rest on, in words.
    pub assumptions: Vec<String>,
    /// How far the other host's clock is ahead, in milliseconds.
    pub clock_ahead_ms: Option<f64>,
}

/// A machine that another host would send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    /// Its description.
    pub spec: VmSpec,
    /// Names of the processor features that its guest has seen.
    #[schema(max_items = 4096)]
    pub cpu_features: Vec<String>,
    /// Version of the software there.
    #[schema(max_length = 256)]
    pub software: String,
    /// Versions of the protocol that it speaks: oldest and newest.
    pub protocol: (u16, u16),
}

/// A host asks to send a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReceptionRequest {
    /// What would come.
    pub offer: Offer,
    /// The migration's id.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub migration: String,
    /// Name of the host that asks.
    #[schema(pattern = "^[!-~]{1,253}$")]
    pub from: String,
    /// `quic` or `tcp`.
    #[schema(pattern = "^(quic|tcp)$")]
    pub transport: String,
    /// Limit in Mbit/s; 0 is none.
    #[schema(minimum = 0, maximum = 1000000)]
    pub link_mbit: u64,
    /// W3C trace context.
    #[schema(pattern = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    pub traceparent: Option<String>,
}

/// A VM process waits for the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reception {
    /// Names it, to [`crate::control::Control::forget_reception`].
    pub id: String,
    /// Address and port of the VM process.
    #[schema(example = "10.0.0.2:49152")]
    pub address: String,
    /// The name that its certificate bears.
    pub server_name: String,
    /// The one-time secret of the migration.
    pub token: String,
}

/// Storage jobs of a machine's former host that have ended there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettledJobs {
    /// The migration by which the machine came.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub migration: String,
    /// They.
    #[schema(max_items = 4096)]
    pub jobs: Vec<SettledJob>,
}

/// A storage job that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettledJob {
    /// Which.
    #[serde(flatten)]
    pub key: JobName,
    /// How.
    pub end: SettledEnd,
}

/// A storage job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobName {
    /// Index of the disk in the machine's description.
    pub disk: u16,
    /// Number of the job.
    pub job: u64,
}

/// How a storage job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SettledEnd {
    /// As asked.
    Done,
    /// With an error, whose number this is.
    Failed(i32),
    /// It was taken back.
    Cancelled,
    /// Nobody knows; it will not happen any more.
    Unknown,
}

/// Storage jobs of whose end a host knows, and has it on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KnownJobs {
    /// They.
    pub jobs: Vec<JobName>,
}

/// The console of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleOutput {
    /// What its serial port has said last; what is no UTF-8 is replaced.
    pub serial: String,
    /// The same of its debug port.
    pub debug: String,
    /// How many bytes its serial port has said in all, of which the above are the last.
    #[serde(default)]
    pub serial_bytes: u64,
    /// The same of its debug port.
    #[serde(default)]
    pub debug_bytes: u64,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// Name and version of the software.
    pub software: String,
    /// Versions of the protocol that it speaks: oldest and newest.
    pub protocol: (u16, u16),
    /// Why KVM machines cannot run here; none: they can.
    pub kvm_problem: Option<String>,
    /// Names of the processor features that guests may see.
    pub cpu_features: Vec<String>,
    /// Memory of the host, in MiB.
    pub memory_mib: u64,
    /// What is available of it, in MiB.
    pub available_mib: u64,
    /// Processors.
    pub processors: u32,
    /// Its limits.
    pub limits: Limits,
    /// Hosts that it knows, by name, with the URLs of their APIs.
    pub peers: BTreeMap<String, String>,
    /// Machines here.
    pub vms: u32,
    /// Migrations under way.
    pub migrations_running: u32,
    /// Migrations that wait for their turn.
    pub migrations_queued: u32,
    /// The host's clock: milliseconds since 1970, UTC.
    pub now_ms: u64,
}

/// What a host allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Migrations away from here at once.
    pub outgoing: u32,
    /// Migrations to here at once.
    pub incoming: u32,
    /// All outgoing migrations together, in Mbit/s; 0 is no limit.
    pub link_mbit: u64,
    /// Compressor threads of all migrations together; 0: as many as processors.
    pub compressors: u32,
    /// Machines.
    pub vms: u32,
    /// RAM of all machines together, in MiB; 0 is no limit but the host's memory.
    pub vm_ram_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outgoing: 4,
            incoming: 4,
            link_mbit: 0,
            compressors: 0,
            vms: 256,
            vm_ram_mib: 0,
        }
    }
}

/// All machines are to leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Where to: peers or URLs, taken in turn.
    #[schema(min_items = 1, max_items = 64)]
    pub to: Vec<String>,
    /// Migrations at once; as the host's limit where nothing is said.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 64)]
    pub parallel: Option<u32>,
    /// How.
    #[serde(default)]
    pub options: MigrationOptions,
}

/// How a machine fares in a drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainItem {
    /// The machine.
    pub vm: String,
    /// Where it goes.
    pub to: String,
    /// Its migration, once it was begun.
    pub migration: Option<String>,
    /// How that is; queued before.
    pub state: MigrationState,
    /// Why it did not complete.
    pub reason: Option<String>,
    /// The guest's pause, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// From begin to end, in milliseconds.
    pub total_ms: Option<f64>,
}

/// A drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// What was asked for.
    pub request: DrainRequest,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Whether nothing more will happen.
    pub over: bool,
    /// Every machine.
    pub items: Vec<DrainItem>,
}

/// Something has happened on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum ServiceEvent {
    /// A machine is there, or has changed.
    Vm(Vm),
    /// A machine is gone.
    VmGone(String),
    /// A migration is there, or has changed.
    Migration(Migration),
    /// A drain has changed.
    Drain(Drain),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_names_that_the_api_spells() {
        let spelled = |state: serde_json::Value| state.as_str().map(str::to_owned).unwrap();
        for state in VmState::ALL {
            assert_eq!(state.name(), spelled(serde_json::json!(state)));
        }
        for state in MigrationState::ALL {
            assert_eq!(state.name(), spelled(serde_json::json!(state)));
        }
    }
}
