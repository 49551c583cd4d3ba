//! Virtual machines: KVM, and the process machine for hosts without it.
//!
//! [`create`] makes an empty machine; [`Machine::boot`] or [`Machine::restore`] gives it something
//! to run; [`Machine::resume`] and [`Machine::pause`] start and stop its vCPUs. The crate knows
//! nothing of migrations: it is told to pause, to save and to restore, and its RAM is read and
//! written by whoever holds it. What its disks have in flight when it is to move is handed over and
//! taken by [`Disks`].

mod arena;
mod boot;
pub mod config;
mod devices;
mod gate;
mod kvm;
mod process;
pub mod workload;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vmferry_block::OpenError;
use vmferry_memory::{GuestRam, MemoryError};
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind};

pub use config::{Boot, Console, MachineConfig, MachineKind};
pub use devices::virtio::{
    DiskStats, Disks, HeldIo, IoEvent, IoSink, MAX_DISKS, MAX_QUEUES, OpenDisk, Role,
};
pub use vmferry_block::{DiskSource, DiskSpec};
pub use workload::{Beat, Recorder};

/// Where a machine is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// Made; nothing to run yet.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs stand still and can run on.
    Paused,
    /// The guest or an operator ended it.
    Stopped,
    /// The guest cannot go on; why, with registers.
    Crashed(String),
}

impl MachineState {
    /// The error for `what`, which is not possible in this state.
    pub(crate) fn forbids(&self, what: &'static str) -> MachineError {
        let state = match self {
            Self::Created => "not booted",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed(_) => "crashed",
        };
        MachineError::Order { what, state }
    }
}

/// What a machine tells of its own accord, from its vCPU threads: the receiver must not block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The built-in workload has filled its RAM on every vCPU, and works.
    WorkloadReady,
    /// A vCPU of the built-in workload has verified its share.
    Verified {
        /// Which.
        vcpu: u32,
        /// As [`vmferry_guest::abi::PORT_VERIFIED`] says.
        result: u32,
    },
    /// The guest stopped by itself (reset, shutdown).
    Stopped {
        /// How, in words.
        detail: String,
    },
    /// The guest cannot go on.
    Crashed {
        /// Why, with registers.
        detail: String,
    },
}

/// Where a machine's events go.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Why a machine could not do as asked.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The configuration cannot be made into a machine; what is wrong and what to do.
    #[error("{0}")]
    Config(String),
    /// /dev/kvm cannot be used.
    #[error("cannot use /dev/kvm: {what}")]
    NoKvm {
        /// What is the matter and what to do.
        what: String,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// KVM refused an operation.
    #[error("KVM: {what} failed")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read or opened.
    #[error("{what} '{path}' cannot be used")]
    File {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// A disk could not be opened.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Saved state that does not fit this machine, or makes no sense.
    #[error("saved state refused: {0}")]
    State(String),
    /// Not possible in the state the machine is in.
    #[error("the machine is {state}: {what} is not possible")]
    Order {
        /// What was asked.
        what: &'static str,
        /// The state.
        state: &'static str,
    },
    /// Threads could not be started, or did not do as they must.
    #[error("{0}")]
    Threads(String),
}

/// A virtual machine. All calls may block for a bounded time, none for longer, whatever the guest
/// does; none may be made from an [`EventSink`].
pub trait Machine: Send + Sync + fmt::Debug {
    /// What it was made from.
    fn config(&self) -> &MachineConfig;

    /// Its RAM.
    fn ram(&self) -> &Arc<GuestRam>;

    /// Names of the processor features that the guest sees, sorted.
    fn cpu_features(&self) -> Vec<String>;

    /// Its disks.
    fn disks(&self) -> &Arc<Disks>;

    /// A tracker of its RAM.
    ///
    /// # Errors
    /// [`TrackerError`] where this machine or kernel cannot have it.
    fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, TrackerError>;

    /// Where it is in its life.
    fn state(&self) -> MachineState;

    /// Loads what the configuration says is to be booted. Created → Paused.
    ///
    /// # Errors
    /// [`MachineError`]; the machine is then to be dropped.
    fn boot(&self) -> Result<(), MachineError>;

    /// Lets the vCPUs run, after its disks are [released](Disks::release). Paused → Running;
    /// nothing where it runs already.
    ///
    /// # Errors
    /// [`MachineError::Order`] where there is nothing to run.
    fn resume(&self) -> Result<(), MachineError>;

    /// Stops the vCPUs, and returns when each stands still. Running → Paused; nothing where it is
    /// paused already.
    ///
    /// # Errors
    /// [`MachineError::Order`] where it crashed or stopped meanwhile.
    fn pause(&self) -> Result<(), MachineError>;

    /// vCPU and device state of a paused machine, whose disks are [held](Disks::hold). May write
    /// to guest RAM. Changes nothing else: the machine can be resumed.
    ///
    /// # Errors
    /// [`MachineError`]; the machine can be resumed all the same.
    fn save(&self) -> Result<Vec<u8>, MachineError>;

    /// Sets a saved state, once it is checked. Created → Paused.
    ///
    /// # Errors
    /// [`MachineError::State`] for anything that does not fit; the machine is then to be dropped.
    fn restore(&self, blob: &[u8]) -> Result<(), MachineError>;

    /// What the built-in workload has told; none where something else is booted.
    fn workload(&self) -> Option<&Arc<Recorder>>;

    /// Ends the vCPU threads and returns when they are gone. Any state → Stopped, unless crashed.
    /// Dropping the machine does it too. A disk whose storage is still at work stays open until
    /// that is done, without anybody waiting for it.
    fn stop(&self);
}

/// Makes a machine with nothing to run in it. Its vCPU threads are there already, and stand.
///
/// Its disks are opened as an owner's, where it is to be booted, or as an heir's, where it is to be
/// restored from another host.
///
/// # Errors
/// [`MachineError`]: what is wrong with `config`, or what this host cannot do.
pub fn create(
    config: &MachineConfig,
    events: EventSink,
    role: Role,
) -> Result<Arc<dyn Machine>, MachineError> {
    create_with(
        config,
        events,
        role,
        &(Arc::new(vmferry_block::open) as OpenDisk),
    )
}

/// As [`create`], with disks that `opener` opens.
///
/// # Errors
/// As [`create`].
pub fn create_with(
    config: &MachineConfig,
    events: EventSink,
    role: Role,
    opener: &OpenDisk,
) -> Result<Arc<dyn Machine>, MachineError> {
    match config.kind {
        MachineKind::Kvm => kvm::KvmMachine::create(config, events, role, opener),
        MachineKind::Process => process::ProcessMachine::create(config, events, role, opener),
    }
}

/// Names of the processor features that KVM guests on this host may see, sorted.
///
/// # Errors
/// [`MachineError::NoKvm`] where there can be none, with what to do.
pub fn host_cpu_features() -> Result<Vec<String>, MachineError> {
    kvm::host_cpu_features()
}

/// Locks `mutex`; what it guards is good whatever a thread that panicked was about to do.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
