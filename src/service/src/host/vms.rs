//! Machines of this host: made, paused, stopped, started, deleted.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, broadcast, mpsc};
use tokio::time::timeout;
use vmferry_machine::MachineKind;
use vmferry_protocol::errors::chain;
use vmferry_vmm::api::{Answer, Event, Request, WorkloadCommand};
use vmferry_vmm::client::{ClientError, VmmClient};

use super::entry::{Entry, Phase, Record, in_a_word};
use super::preflight::{self, Here};
use super::process::{self, Running};
use super::{Inner, Result, lock, spec, store, watch};
use crate::control::ControlError;
use crate::model::{ConsoleOutput, ServiceEvent, Vm, VmSpec, VmState};

/// Most bytes of a console file in an answer.
const MOST_CONSOLE: u64 = 1 << 20;
/// The workload verifies all its memory meanwhile.
const VERIFY_WITHIN: Duration = Duration::from_secs(600);

/// An error of a VM process, as the API tells it.
pub(super) fn refused(error: &ClientError) -> ControlError {
    match error {
        ClientError::Refused(why) => ControlError::Conflict(why.clone()),
        other => ControlError::Failed(chain(other)),
    }
}

fn unexpected() -> ControlError {
    ControlError::Failed("the VM process gave an answer of another kind".to_owned())
}

impl Inner {
    /// A VM has changed.
    pub(super) fn changed(&self, entry: &Entry) {
        // One that has been forgotten meanwhile is not to come back.
        if self.is_known(entry) {
            self.tell(ServiceEvent::Vm(entry.vm()));
        }
    }

    /// Whether it has not been forgotten meanwhile, and another come in its place.
    pub(super) fn is_known(&self, entry: &Entry) -> bool {
        let vms = lock(&self.vms);
        let found = vms.get(&entry.name);
        found.is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), entry))
    }

    /// Waits for the calls for a VM that came before.
    ///
    /// # Errors
    /// [`ControlError::NotFound`]: it is gone since.
    pub(super) async fn turn_of(&self, entry: &Entry) -> Result<OwnedMutexGuard<()>> {
        let turn = entry.turn().await;
        match self.is_known(entry) {
            true => Ok(turn),
            false => Err(ControlError::NotFound(format!(
                "there is no VM called {:?} here any more",
                entry.name
            ))),
        }
    }

    /// Writes down what a VM is.
    pub(super) async fn save(&self, entry: &Entry) -> Result<()> {
        self.store.write(entry.file(), &entry.record()).await
    }

    /// Notes a new VM, if there is room for it.
    pub(super) fn claim(&self, entry: &Arc<Entry>, ram_mib: u64) -> Result<()> {
        let mut vms = lock(&self.vms);
        if let Some(other) = vms.get(&entry.name) {
            return Err(ControlError::Conflict(format!(
                "there is a VM called '{}' here already: it is {}",
                entry.name,
                in_a_word(other.state())
            )));
        }
        self.room(vms.values(), ram_mib)?;
        vms.insert(entry.name.clone(), entry.clone());
        Ok(())
    }

    fn room<'a>(&self, vms: impl Iterator<Item = &'a Arc<Entry>>, ram_mib: u64) -> Result<()> {
        let here = self.load(vms);
        let mut problems = Vec::new();
        preflight::limits(&here, ram_mib, &mut problems);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(ControlError::Limit(preflight::in_a_line(&problems))),
        }
    }

    /// How full the host is with these VMs.
    pub(super) fn load<'a>(&self, vms: impl Iterator<Item = &'a Arc<Entry>>) -> Here {
        let mut here = Here {
            host: self.config.name.clone(),
            limits: self.limits(),
            available_mib: super::facts::memory_mib().1,
            ..Here::default()
        };
        for entry in vms {
            here.vms += 1;
            if entry.takes_memory() {
                let ram = entry.with(|d| d.record.spec.ram_mib);
                here.ram_mib = here.ram_mib.saturating_add(ram);
            }
        }
        here
    }

    /// A VM is not known any more.
    pub(super) async fn forget(&self, entry: &Entry) -> Result<()> {
        if !self.is_known(entry) {
            return Ok(());
        }
        self.store.remove(entry.dir.clone()).await?;
        lock(&self.vms).remove(&entry.name);
        self.tell(ServiceEvent::VmGone(entry.name.clone()));
        Ok(())
    }

    pub(super) async fn create(self: &Arc<Self>, spec: VmSpec) -> Result<Vm> {
        spec::check_name(&spec.name).map_err(ControlError::Invalid)?;
        let dir = self.store.vm(&spec.name);
        let config = spec::config(&spec, self.kvm.is_ok(), &dir).map_err(ControlError::Invalid)?;
        process::check_path(&dir).map_err(ControlError::Invalid)?;
        if let (MachineKind::Kvm, Err(why)) = (config.kind, &self.kvm) {
            return Err(ControlError::Invalid(format!("no KVM machine here: {why}")));
        }
        let ram_mib = spec.ram_mib;
        let record = Record {
            spec,
            kind: config.kind,
            phase: Phase::Live,
            undecided: None,
        };
        let entry = Entry::new(record, dir, VmState::Starting);
        let _turn = entry.turn().await;
        self.claim(&entry, ram_mib)?;
        self.changed(&entry);
        let made = match self.make_dir(&entry).await {
            Ok(()) => self.boot(&entry, config).await,
            Err(e) => {
                lock(&self.vms).remove(&entry.name);
                self.tell(ServiceEvent::VmGone(entry.name.clone()));
                return Err(e);
            }
        };
        if let Err(error) = made {
            match self.end_process(&entry).await {
                Ok(()) => self.forget(&entry).await?,
                // A guest may run in it: it stays, for somebody to see to it.
                Err(stays) => {
                    let why = Some(format!("{error}; {stays}"));
                    self.stays_stopped(&entry, true, why).await?;
                }
            }
            return Err(error);
        }
        Ok(entry.vm())
    }

    /// Makes the directory of a new VM, with its description.
    pub(super) async fn make_dir(&self, entry: &Entry) -> Result<()> {
        let made = DirBuilder::new().mode(0o700).create(&entry.dir);
        made.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => ControlError::Conflict(format!(
                "'{}' is in the way: see what is in it, and remove it",
                entry.dir.display()
            )),
            _ => ControlError::Failed(format!("'{}': {e}", entry.dir.display())),
        })?;
        self.save(entry).await
    }

    /// Takes a process for a VM's own, and listens to it.
    pub(super) fn take_up(self: &Arc<Self>, entry: &Arc<Entry>, running: Running) {
        let (client, events) = connect(entry, running);
        self.spawn(watch::listen(self.clone(), entry.clone(), client, events));
    }

    /// Asks its process how a VM is.
    pub(super) async fn refresh(&self, entry: &Entry) -> Result<()> {
        let client = entry.client()?;
        match client.call(Request::Status).await {
            Ok(Answer::Status(status)) => entry.note(&status),
            Ok(_) => return Err(unexpected()),
            Err(e) => return Err(refused(&e)),
        }
        self.changed(entry);
        Ok(())
    }

    async fn boot(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        config: vmferry_machine::MachineConfig,
    ) -> Result<()> {
        let failed = |why: String| ControlError::Failed(format!("'{}': {why}", entry.name));
        let running = process::start(&self.config.binary, &entry.dir)
            .await
            .map_err(failed)?;
        self.take_up(entry, running);
        let booted = entry.client()?.call(Request::Boot(Box::new(config))).await;
        booted.map_err(|e| failed(chain(&e)))?;
        self.refresh(entry).await
    }

    /// Ends a VM's process, if there is one.
    pub(super) async fn end_process(&self, entry: &Entry) -> Result<()> {
        let client = entry.with(|d| {
            d.ending = true;
            d.client.clone()
        });
        let ended = process::end(&entry.dir, client.as_deref()).await;
        entry.with(|d| {
            d.ending = false;
            if ended.is_ok() {
                d.client = None;
            }
        });
        ended.map_err(|why| ControlError::Failed(format!("'{}': {why}", entry.name)))
    }

    /// Whether nothing stands against changing a VM.
    fn free(&self, entry: &Entry) -> Result<()> {
        let (state, migration) = entry.with(|d| (d.state, d.migration.clone()));
        if let Some(id) = migration
            && !lock(&self.migrations).waits(&id)
        {
            return Err(ControlError::Conflict(format!(
                "'{}' is being moved, by migration {id}: wait for its end, or cancel it",
                entry.name
            )));
        }
        match state {
            VmState::Arriving | VmState::Settling => Err(conflict(entry, state)),
            _ => Ok(()),
        }
    }

    pub(super) async fn pause(&self, entry: &Entry) -> Result<Vm> {
        self.ask_machine(entry, Request::Pause).await
    }

    pub(super) async fn resume(&self, entry: &Entry) -> Result<Vm> {
        self.ask_machine(entry, Request::Resume).await
    }

    async fn ask_machine(&self, entry: &Entry, request: Request) -> Result<Vm> {
        let _turn = self.turn_of(entry).await?;
        self.free(entry)?;
        let state = entry.state();
        if !matches!(state, VmState::Running | VmState::Paused) {
            // Of all states, an undecided one must not be resumed.
            return Err(conflict(entry, state));
        }
        let done = entry.client()?.call(request).await;
        done.map_err(|e| refused(&e))?;
        self.refresh(entry).await?;
        Ok(entry.vm())
    }

    pub(super) async fn stop(&self, entry: &Entry) -> Result<Vm> {
        let _turn = self.turn_of(entry).await?;
        self.free(entry)?;
        let stopped = Phase::Stopped {
            crashed: false,
            why: None,
        };
        // First of all: a service that comes after this one ends the process if this does not.
        entry.with(|d| d.record.phase = stopped);
        self.save(entry).await?;
        self.end_process(entry).await?;
        entry.with(|d| {
            d.state = VmState::Stopped;
            d.detail = d.record.undecided.as_ref().map(|id| handed_over(id));
        });
        self.changed(entry);
        Ok(entry.vm())
    }

    pub(super) async fn start(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Vm> {
        let _turn = self.turn_of(entry).await?;
        self.free(entry)?;
        let state = entry.state();
        if !matches!(state, VmState::Stopped | VmState::Crashed) {
            return Err(conflict(entry, state));
        }
        no_silent_process(entry)?;
        let spec = entry.record().spec;
        let config =
            spec::config(&spec, self.kvm.is_ok(), &entry.dir).map_err(ControlError::Invalid)?;
        self.end_process(entry).await?;
        {
            let vms = lock(&self.vms);
            self.room(vms.values().filter(|e| e.name != entry.name), spec.ram_mib)?;
            entry.with(|d| {
                d.record.phase = Phase::Live;
                (d.state, d.detail) = (VmState::Starting, None);
            });
        }
        self.save(entry).await?;
        self.changed(entry);
        if let Err(error) = self.boot(entry, config).await {
            let ended = self.end_process(entry).await;
            self.stays_stopped(entry, false, Some(error.to_string()))
                .await?;
            ended?;
            return Err(error);
        }
        // Its process boots none whose journal does not say that it is here.
        if entry.with(|d| d.record.undecided.take()).is_some() {
            self.save(entry).await?;
            self.refresh(entry).await?;
        }
        Ok(entry.vm())
    }

    /// A VM does not run, and will not by itself.
    pub(super) async fn stays_stopped(
        &self,
        entry: &Entry,
        crashed: bool,
        why: Option<String>,
    ) -> Result<()> {
        entry.with(|d| {
            d.state = match crashed {
                true => VmState::Crashed,
                false => VmState::Stopped,
            };
            d.detail.clone_from(&why);
            d.record.phase = Phase::Stopped { crashed, why };
        });
        self.changed(entry);
        self.save(entry).await
    }

    pub(super) async fn delete(&self, entry: &Entry) -> Result<()> {
        let _turn = self.turn_of(entry).await?;
        let (state, migration) = entry.with(|d| (d.state, d.migration.clone()));
        if let Some(id) = migration {
            return Err(ControlError::Conflict(format!(
                "'{}' is part of migration {id}: cancel that first",
                entry.name
            )));
        }
        if !matches!(state, VmState::Stopped | VmState::Crashed) {
            return Err(ControlError::Conflict(format!(
                "'{}' is {}: stop it first",
                entry.name,
                in_a_word(state)
            )));
        }
        no_silent_process(entry)?;
        self.end_process(entry).await?;
        self.forget(entry).await
    }

    pub(super) async fn verify(&self, entry: &Entry) -> Result<String> {
        let moving = {
            let _turn = self.turn_of(entry).await?;
            entry.with(|d| d.migration.is_some())
        };
        let client = entry.client()?;
        let mut verdicts = entry.verdicts.subscribe();
        let command = match moving {
            // What is in flight may not end before the migration does.
            true => WorkloadCommand::Verify,
            false => WorkloadCommand::VerifySettled,
        };
        let asked = client.call(Request::Workload(command)).await;
        asked.map_err(|e| refused(&e))?;
        let gone = || {
            ControlError::Failed(format!(
                "'{}' has said nothing: it is {}",
                entry.name,
                in_a_word(entry.state())
            ))
        };
        match timeout(VERIFY_WITHIN, verdicts.recv()).await {
            Ok(Ok(verdict)) if verdict == watch::NO_VERDICT => Err(gone()),
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(broadcast::error::RecvError::Lagged(_))) => Err(unexpected()),
            Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => Err(gone()),
        }
    }

    pub(super) async fn settle_storage(
        &self,
        entry: &Entry,
        nobody_else_writes: bool,
    ) -> Result<u64> {
        let _turn = self.turn_of(entry).await?;
        let request = Request::SettleStorage { nobody_else_writes };
        match entry.client()?.call(request).await {
            Ok(Answer::Settled { writes }) => Ok(writes),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(refused(&e)),
        }
    }
}

/// Takes a process for a VM's own. Somebody has to listen to it.
pub(super) fn connect(
    entry: &Entry,
    running: Running,
) -> (Arc<VmmClient>, mpsc::UnboundedReceiver<Event>) {
    let client = Arc::new(running.client);
    entry.with(|d| {
        d.client = Some(client.clone());
        d.exit = running.exit;
        d.ending = false;
    });
    (client, running.events)
}

/// Why nobody may let it run by guess.
pub(super) fn handed_over(migration: &str) -> String {
    format!(
        "it was handed over in migration {migration}, and the other host has not confirmed: find \
         out there whether it runs, and decide (`vm decide`)"
    )
}

/// A process that does not answer may have a guest that runs.
pub(super) fn no_silent_process(entry: &Entry) -> Result<()> {
    match entry.client().is_err() && process::is_there(&entry.dir) {
        true => Err(ControlError::Conflict(format!(
            "the process of '{}' is there and does not answer, and a guest may run in it: `stop` \
             ends it by force",
            entry.name
        ))),
        false => Ok(()),
    }
}

pub(super) fn conflict(entry: &Entry, state: VmState) -> ControlError {
    let name = &entry.name;
    let detail = entry.with(|d| d.detail.clone());
    let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
    ControlError::Conflict(format!("'{name}' is {}{detail}", in_a_word(state)))
}

/// The last bytes of its console files.
pub(super) async fn console(entry: &Entry, most_bytes: u64) -> Result<ConsoleOutput> {
    let (dir, most) = (entry.dir.clone(), most_bytes.min(MOST_CONSOLE));
    let read = move || -> io::Result<ConsoleOutput> {
        let (serial, serial_bytes) = store::tail(&dir.join(spec::SERIAL), most)?;
        let (debug, debug_bytes) = store::tail(&dir.join(spec::DEBUG), most)?;
        Ok(ConsoleOutput {
            serial,
            debug,
            serial_bytes,
            debug_bytes,
        })
    };
    let read = tokio::task::spawn_blocking(read).await;
    let failed = |e: String| ControlError::Failed(format!("the console of '{}': {e}", entry.name));
    match read {
        Ok(read) => read.map_err(|e| failed(e.to_string())),
        Err(e) => Err(failed(e.to_string())),
    }
}
