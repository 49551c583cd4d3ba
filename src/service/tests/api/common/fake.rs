//! A host made of a map: for tests of the API, and to fuzz it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::{Notify, broadcast};
use vmferry_engine::report::MigrationReport;
use vmferry_service::control::{Control, ControlError};
use vmferry_service::model::{
    ConsoleOutput, Decision, Direction, Drain, DrainItem, DrainRequest, HostInfo, KnownJobs,
    Limits, Migration, MigrationRequest, MigrationStarted, MigrationState, Offer, Preflight,
    Problem, Reception, ReceptionRequest, ServiceEvent, SettledJobs, Vm, VmSpec, VmState,
};

type Result<T> = std::result::Result<T, ControlError>;

/// Most machines of it.
pub(crate) const MAX_VMS: usize = 64;
/// Events that it keeps for readers.
pub(crate) const QUEUE: usize = 64;

/// A host made of a map. Some names make trouble: see `create`.
pub(crate) struct FakeHost {
    state: Mutex<State>,
    events: broadcast::Sender<ServiceEvent>,
    /// Told when a request for machine `slow` has come.
    pub(crate) reached: Notify,
    /// Lets it go on.
    pub(crate) release: Notify,
    /// Told when it is done.
    pub(crate) finished: Notify,
}

#[derive(Default)]
struct State {
    vms: BTreeMap<String, Vm>,
    migrations: Vec<Migration>,
    drain: Option<Drain>,
    count: u64,
}

impl FakeHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            events: broadcast::channel(QUEUE).0,
            reached: Notify::new(),
            release: Notify::new(),
            finished: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Tells all readers.
    pub(crate) fn say(&self, event: ServiceEvent) {
        let _ = self.events.send(event);
    }

    /// How many readers there are.
    pub(crate) fn readers(&self) -> usize {
        self.events.receiver_count()
    }

    fn change(&self, name: &str, from: &[VmState], to: VmState) -> Result<Vm> {
        let mut state = self.state();
        let vm = state.vms.get_mut(name).ok_or_else(|| no_vm(name))?;
        if !from.contains(&vm.state) {
            return Err(ControlError::Conflict(format!(
                "machine {name} is {:?}",
                vm.state
            )));
        }
        vm.state = to;
        let vm = vm.clone();
        drop(state);
        self.say(ServiceEvent::Vm(vm.clone()));
        Ok(vm)
    }
}

fn no_vm(name: &str) -> ControlError {
    ControlError::NotFound(format!("there is no machine {name} on this host"))
}

fn no_migration(id: &str) -> ControlError {
    ControlError::NotFound(format!("there is no migration {id}"))
}

#[async_trait]
impl Control for FakeHost {
    async fn host(&self) -> HostInfo {
        HostInfo {
            name: "host-a".to_owned(),
            software: "vmferry 0".to_owned(),
            protocol: (1, 1),
            kvm_problem: None,
            cpu_features: vec!["avx2".to_owned()],
            memory_mib: 1024,
            available_mib: 512,
            processors: 2,
            limits: Limits::default(),
            peers: BTreeMap::from([("host-b".to_owned(), "https://host-b:7443".to_owned())]),
            vms: self.state().vms.len() as u32,
            migrations_running: 0,
            migrations_queued: 0,
            now_ms: 1,
        }
    }

    async fn vms(&self) -> Vec<Vm> {
        self.state().vms.values().cloned().collect()
    }

    async fn vm(&self, name: &str) -> Result<Vm> {
        match name {
            "panics" => panic!("as asked for"),
            "fails" => Err(ControlError::Failed("its disk is gone".to_owned())),
            _ => self
                .state()
                .vms
                .get(name)
                .cloned()
                .ok_or_else(|| no_vm(name)),
        }
    }

    async fn create(&self, spec: VmSpec) -> Result<Vm> {
        if spec.name == "slow" {
            self.reached.notify_one();
            self.release.notified().await;
        }
        let vm = Vm {
            name: spec.name.clone(),
            state: VmState::Running,
            detail: None,
            machine: "process".to_owned(),
            pid: Some(1),
            migration: None,
            spec,
        };
        let mut state = self.state();
        if state.vms.contains_key(&vm.name) {
            return Err(ControlError::Conflict(format!("there is a {}", vm.name)));
        }
        if state.vms.len() == MAX_VMS {
            return Err(ControlError::Limit(format!("there are {MAX_VMS} machines")));
        }
        state.vms.insert(vm.name.clone(), vm.clone());
        drop(state);
        self.say(ServiceEvent::Vm(vm.clone()));
        if vm.name == "slow" {
            self.finished.notify_one();
        }
        Ok(vm)
    }

    async fn pause(&self, name: &str) -> Result<Vm> {
        self.change(name, &[VmState::Running], VmState::Paused)
    }

    async fn resume(&self, name: &str) -> Result<Vm> {
        self.change(name, &[VmState::Paused], VmState::Running)
    }

    async fn stop(&self, name: &str) -> Result<Vm> {
        let from = [VmState::Running, VmState::Paused];
        self.change(name, &from, VmState::Stopped)
    }

    async fn start(&self, name: &str) -> Result<Vm> {
        self.change(name, &[VmState::Stopped], VmState::Running)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.change(name, &[VmState::Stopped], VmState::Stopped)?;
        self.state().vms.remove(name);
        self.say(ServiceEvent::VmGone(name.to_owned()));
        Ok(())
    }

    async fn verify(&self, name: &str) -> Result<String> {
        self.vm(name).await.map(|_| "OK".to_owned())
    }

    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64> {
        self.vm(name).await?;
        if nobody_else_writes {
            Ok(3)
        } else {
            Err(ControlError::Invalid("somebody has to vouch".to_owned()))
        }
    }

    async fn decide(&self, name: &str, decision: Decision) -> Result<()> {
        self.vm(name).await?;
        match decision.certain {
            true => Ok(()),
            false => Err(ControlError::Invalid(
                "somebody has to be certain".to_owned(),
            )),
        }
    }

    async fn console(&self, name: &str, most_bytes: u64) -> Result<ConsoleOutput> {
        self.vm(name).await?;
        let serial: String = "login: ".chars().take(most_bytes as usize).collect();
        let debug = String::new();
        Ok(ConsoleOutput {
            serial_bytes: serial.len() as u64,
            debug_bytes: debug.len() as u64,
            serial,
            debug,
        })
    }

    async fn preflight(&self, name: &str, request: &MigrationRequest) -> Result<Preflight> {
        self.vm(name).await?;
        if request.to == "unreachable" {
            return Err(ControlError::Peer("unreachable: no route".to_owned()));
        }
        Ok(Preflight {
            measured_mbit: Some(1000.0),
            ..Preflight::default()
        })
    }

    async fn migrate(&self, name: &str, request: MigrationRequest) -> Result<MigrationStarted> {
        self.preflight(name, &request).await?;
        let mut state = self.state();
        state.count += 1;
        let id = format!("{:032x}", state.count);
        let mut migration = running(&id, name, Direction::Outgoing, &request.to);
        migration.traceparent = request.traceparent;
        state.migrations.insert(0, migration.clone());
        state.migrations.truncate(100);
        drop(state);
        self.say(ServiceEvent::Migration(migration));
        Ok(MigrationStarted { id })
    }

    async fn migrations(&self) -> Vec<Migration> {
        self.state().migrations.clone()
    }

    async fn migration(&self, id: &str) -> Result<Migration> {
        let state = self.state();
        let found = state.migrations.iter().find(|m| m.id == id).cloned();
        found.ok_or_else(|| no_migration(id))
    }

    async fn report(&self, id: &str) -> Result<MigrationReport> {
        if !self.migration(id).await?.state.is_over() {
            return Err(ControlError::Conflict("it is under way".to_owned()));
        }
        Ok(report(id))
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        self.migration(id).await?;
        Ok(serde_json::json!({"resourceSpans": []}))
    }

    async fn cancel(&self, id: &str) -> Result<Migration> {
        let mut state = self.state();
        let found = state.migrations.iter_mut().find(|m| m.id == id);
        let migration = found.ok_or_else(|| no_migration(id))?;
        if migration.state.is_over() {
            return Err(ControlError::Conflict("it is over".to_owned()));
        }
        migration.state = MigrationState::Cancelled;
        Ok(migration.clone())
    }

    async fn drain(&self, request: DrainRequest) -> Result<Drain> {
        let mut state = self.state();
        let items = state.vms.keys().map(|vm| DrainItem {
            vm: vm.clone(),
            to: request.to.first().cloned().unwrap_or_default(),
            migration: None,
            state: MigrationState::Queued,
            reason: None,
            blackout_ms: None,
            total_ms: None,
        });
        let drain = Drain {
            items: items.collect(),
            request,
            cancelled: false,
            over: false,
        };
        state.drain = Some(drain.clone());
        drop(state);
        self.say(ServiceEvent::Drain(drain.clone()));
        Ok(drain)
    }

    async fn drain_state(&self) -> Result<Drain> {
        let none = || ControlError::NotFound("there was no drain".to_owned());
        self.state().drain.clone().ok_or_else(none)
    }

    async fn cancel_drain(&self) -> Result<Drain> {
        self.drain_state().await?;
        let mut state = self.state();
        let drain = state.drain.as_mut().unwrap();
        drain.cancelled = true;
        drain.over = true;
        Ok(drain.clone())
    }

    async fn consider(&self, offer: Offer) -> Result<Preflight> {
        let missing = offer.cpu_features.iter().filter(|f| *f != "avx2");
        let problems = missing.map(|feature| Problem {
            area: "cpu".to_owned(),
            what: format!("this host has no {feature}"),
            todo: "hide it from the guest".to_owned(),
        });
        Ok(Preflight {
            problems: problems.collect(),
            ..Preflight::default()
        })
    }

    async fn receive(&self, request: ReceptionRequest) -> Result<Reception> {
        let id = request.migration.clone();
        let mut state = self.state();
        if state.migrations.iter().any(|m| m.id == id) {
            return Err(ControlError::Conflict("it is waited for".to_owned()));
        }
        let vm = &request.offer.spec.name;
        let migration = running(&id, vm, Direction::Incoming, &request.from);
        state.migrations.insert(0, migration);
        Ok(Reception {
            id,
            address: "127.0.0.1:1".to_owned(),
            server_name: "host-a".to_owned(),
            token: "0".repeat(64),
        })
    }

    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs> {
        if self.migration(&settled.migration).await?.direction != Direction::Incoming {
            return Err(ControlError::Invalid("it left from here".to_owned()));
        }
        Ok(KnownJobs {
            jobs: settled.jobs.iter().map(|job| job.key).collect(),
        })
    }

    async fn forget_reception(&self, id: &str) -> Result<()> {
        self.state().migrations.retain(|m| m.id != id);
        Ok(())
    }

    fn events(&self) -> broadcast::Receiver<ServiceEvent> {
        self.events.subscribe()
    }

    async fn metrics(&self) -> String {
        "# TYPE vmferry_vms gauge\nvmferry_vms 0\n".to_owned()
    }
}

fn running(id: &str, vm: &str, direction: Direction, peer: &str) -> Migration {
    Migration {
        id: id.to_owned(),
        vm: vm.to_owned(),
        direction,
        peer: peer.to_owned(),
        state: MigrationState::Running,
        reason: None,
        asked_ms: 1,
        ended_ms: None,
        progress: None,
        blackout_ms: None,
        total_ms: None,
        traceparent: None,
    }
}

/// A report with what has no default.
pub(crate) fn report(id: &str) -> MigrationReport {
    serde_json::from_value(serde_json::json!({
        "migration_id": id, "outcome": "cancelled", "reason": "somebody cancelled",
        "machine": "process", "transport": "quic", "streams": 2, "tracker": "wp-group",
        "codec": "auto", "vcpus": 1, "ram_bytes": 1 << 30, "total_ms": 12.5,
        "passes": [], "bytes_memory": 0, "bytes_wire": 0, "bytes_by_codec": {},
        "pages_zero": 0, "pages_unchanged": 0, "decisions": [],
        "notifications": {"answered": 0, "pages_released": 0, "stall_ms": 0.0,
            "longest_stall_ms": 0.0, "throttled_ms": 0.0},
        "vcpu_run_delay_ms": 0.0, "guest": {}, "peak_extra_rss_bytes": 0,
    }))
    .unwrap()
}
