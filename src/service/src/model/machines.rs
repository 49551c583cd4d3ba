//! Machines.

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
