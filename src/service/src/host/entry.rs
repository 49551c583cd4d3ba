//! A VM as this host knows it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast, watch};
use vmferry_machine::MachineKind;
use vmferry_vmm::api::Status;
use vmferry_vmm::client::VmmClient;

use super::lock;
use crate::control::ControlError;
use crate::model::{Vm, VmSpec, VmState};

/// The file in its directory that says what a VM is.
pub(super) const FILE: &str = "spec.json";

/// What has to be known of a VM when its process cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// It is to run here.
    Live,
    /// It is to come by this migration.
    Arriving(String),
    /// It is not to run.
    Stopped {
        /// It went by itself.
        crashed: bool,
        /// Why.
        why: Option<String>,
    },
}

/// What is kept of a VM in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) spec: VmSpec,
    pub(super) kind: MachineKind,
    pub(super) phase: Phase,
    /// The migration by which it was handed over without a confirmation.
    #[serde(default)]
    pub(super) undecided: Option<String>,
}

/// What changes.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) record: Record,
    pub(super) state: VmState,
    pub(super) detail: Option<String>,
    /// The migration that it is part of, or waits for.
    pub(super) migration: Option<String>,
    /// The connection to its process.
    pub(super) client: Option<Arc<VmmClient>>,
    /// How the process ended, once it has.
    pub(super) exit: watch::Receiver<Option<String>>,
    /// The process is being ended by this service.
    pub(super) ending: bool,
}

/// A VM.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    /// Calls for it, one after the other.
    turn: Arc<AsyncMutex<()>>,
    /// What its workload finds.
    pub(super) verdicts: broadcast::Sender<String>,
    data: Mutex<Data>,
}

impl Entry {
    pub(super) fn new(record: Record, dir: PathBuf, state: VmState) -> Arc<Self> {
        Arc::new(Self {
            name: record.spec.name.clone(),
            dir,
            turn: Arc::default(),
            verdicts: broadcast::Sender::new(16),
            data: Mutex::new(Data {
                record,
                state,
                detail: None,
                migration: None,
                client: None,
                exit: watch::channel(None).1,
                ending: false,
            }),
        })
    }

    /// Waits for the calls that came before.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Reads or changes what is known. Nothing in `f` may wait.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Data) -> T) -> T {
        f(&mut lock(&self.data))
    }

    pub(super) fn state(&self) -> VmState {
        self.with(|d| d.state)
    }

    pub(super) fn record(&self) -> Record {
        self.with(|d| d.record.clone())
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// As the API shows it.
    pub(super) fn vm(&self) -> Vm {
        self.with(|d| Vm {
            name: self.name.clone(),
            state: d.state,
            detail: d.detail.clone(),
            machine: d.record.kind.name().to_owned(),
            pid: d.client.as_ref().and_then(|client| client.pid()),
            migration: d.migration.clone(),
            spec: d.record.spec.clone(),
        })
    }

    /// The connection to its process.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] where it has none.
    pub(super) fn client(&self) -> Result<Arc<VmmClient>, ControlError> {
        let (client, state) = self.with(|d| (d.client.clone(), d.state));
        client.ok_or_else(|| {
            ControlError::Conflict(format!(
                "'{}' has no process: it is {}",
                self.name,
                in_a_word(state)
            ))
        })
    }

    /// Whether its process or a guest in it takes memory.
    pub(super) fn takes_memory(&self) -> bool {
        self.with(|d| d.client.is_some() || d.state == VmState::Starting)
    }

    /// Takes over what its process says.
    pub(super) fn note(&self, status: &Status) {
        self.with(|d| {
            let (state, detail) = match (status.machine.as_str(), &d.record.phase) {
                _ if d.record.undecided.is_some() => (VmState::Undecided, d.detail.clone()),
                ("running", _) => (VmState::Running, None),
                ("paused" | "created", _) => (VmState::Paused, None),
                ("stopped", _) => (VmState::Stopped, status.detail.clone()),
                ("crashed", _) => (VmState::Crashed, status.detail.clone()),
                (_, Phase::Arriving(_)) => (VmState::Arriving, None),
                _ => (d.state, d.detail.clone()),
            };
            (d.state, d.detail) = (state, detail);
        });
    }
}

/// A state, in a sentence.
pub(super) fn in_a_word(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Arriving => "still arriving from another host",
        VmState::Stopped => "stopped",
        VmState::Crashed => "crashed",
        VmState::Undecided => "handed over, and nobody knows whether it runs elsewhere",
        VmState::Settling => "running on another host already",
    }
}

/// Reads the description in a VM's directory; none where there is none. Blocks.
///
/// # Errors
/// In words.
pub(super) fn read(dir: &Path) -> Result<Option<Record>, String> {
    super::store::read(&dir.join(FILE))
}
