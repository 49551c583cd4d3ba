//! A host service that answers what a test has written down.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use vmferry_engine::report::MigrationReport;
use vmferry_service::model::{
    BootSpec, ConsoleOutput, Decision, Direction, Drain, DrainItem, DrainRequest, HostInfo, Limits,
    Migration, MigrationRequest, MigrationStarted, MigrationState, Preflight, Vm, VmSpec, VmState,
};

use super::api::{Happening, Happenings, Remote, RemoteError, Result};
use super::display::Plain;
use super::session::{Interrupts, Out, Session};

/// What was written, to be read by the test.
#[derive(Clone, Debug, Default)]
pub(super) struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers one after the other; the last one stays.
#[derive(Debug)]
pub(super) struct Script<T>(Mutex<VecDeque<Result<T>>>);

impl<T> Default for Script<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Script<T> {
    pub(super) fn then(&self, answer: Result<T>) -> &Self {
        self.0.lock().unwrap().push_back(answer);
        self
    }

    fn next(&self) -> Result<T> {
        let mut answers = self.0.lock().unwrap();
        match answers.len() {
            0 => Err(problem(404, "there is no such thing")),
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap(),
        }
    }
}

/// See the module. Calls that change something are noted.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) hosts: Script<HostInfo>,
    pub(super) vms: Script<Vec<Vm>>,
    pub(super) vm: Script<Vm>,
    pub(super) verdicts: Script<String>,
    pub(super) consoles: Script<ConsoleOutput>,
    pub(super) preflights: Script<Preflight>,
    pub(super) migrations: Script<Migration>,
    pub(super) remembered: Script<Vec<Migration>>,
    pub(super) cancels: Script<Migration>,
    pub(super) reports: Script<MigrationReport>,
    pub(super) drains: Script<Drain>,
    pub(super) drain_cancels: Script<Drain>,
    /// Of the stream of events that was opened last.
    pub(super) events: Mutex<Option<UnboundedSender<Result<Happening>>>>,
}

impl Fake {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Into the stream of events, which has to be open.
    pub(super) fn happen(&self, item: Result<Happening>) {
        let events = self.events.lock().unwrap();
        events.as_ref().unwrap().send(item).unwrap();
    }

    fn machine(&self, call: &str, name: &str) -> Result<Vm> {
        self.note(format!("{call} {name}"));
        self.vm.next()
    }
}

#[async_trait]
impl Remote for Fake {
    async fn host(&self) -> Result<HostInfo> {
        self.hosts.next()
    }

    async fn vms(&self) -> Result<Vec<Vm>> {
        self.vms.next()
    }

    async fn vm(&self, name: &str) -> Result<Vm> {
        self.machine("vm", name)
    }

    async fn create(&self, spec: &VmSpec) -> Result<Vm> {
        self.machine("create", &serde_json::to_string(spec).unwrap())
    }

    async fn pause(&self, name: &str) -> Result<Vm> {
        self.machine("pause", name)
    }

    async fn resume(&self, name: &str) -> Result<Vm> {
        self.machine("resume", name)
    }

    async fn stop(&self, name: &str) -> Result<Vm> {
        self.machine("stop", name)
    }

    async fn start(&self, name: &str) -> Result<Vm> {
        self.machine("start", name)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.machine("delete", name).map(|_| ())
    }

    async fn verify(&self, _: &str) -> Result<String> {
        self.verdicts.next()
    }

    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64> {
        self.note(format!("settle {name} {nobody_else_writes}"));
        Ok(3)
    }

    async fn decide(&self, name: &str, decision: Decision) -> Result<()> {
        self.note(format!("decide {name} {decision:?}"));
        Ok(())
    }

    async fn console(&self, _: &str, _: u64) -> Result<ConsoleOutput> {
        self.consoles.next()
    }

    async fn preflight(&self, _: &str, _: &MigrationRequest) -> Result<Preflight> {
        self.preflights.next()
    }

    async fn migrate(&self, name: &str, request: &MigrationRequest) -> Result<MigrationStarted> {
        self.note(format!(
            "migrate {name} {}",
            serde_json::to_string(&request.to).unwrap()
        ));
        Ok(MigrationStarted { id: ID.to_owned() })
    }

    async fn migrations(&self) -> Result<Vec<Migration>> {
        self.remembered.next()
    }

    async fn migration(&self, _: &str) -> Result<Migration> {
        self.migrations.next()
    }

    async fn report(&self, _: &str) -> Result<MigrationReport> {
        self.reports.next()
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        Ok(json!({ "resourceSpans": [], "of": id }))
    }

    async fn cancel(&self, id: &str) -> Result<Migration> {
        self.note(format!("cancel {id}"));
        self.cancels.next()
    }

    async fn drain(&self, request: &DrainRequest) -> Result<Drain> {
        self.note(format!("drain {}", request.to.join(" ")));
        self.drains.next()
    }

    async fn drain_state(&self) -> Result<Drain> {
        self.drains.next()
    }

    async fn cancel_drain(&self) -> Result<Drain> {
        self.note("cancel drain");
        self.drain_cancels.next()
    }

    async fn events(&self) -> Result<Happenings> {
        self.note("events");
        let (sender, receiver) = unbounded_channel();
        *self.events.lock().unwrap() = Some(sender);
        let items = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|item| (item, receiver))
        });
        Ok(items.boxed())
    }
}

/// What a test holds of a session.
pub(super) struct Ends {
    pub(super) out: Paper,
    pub(super) err: Paper,
    pub(super) interrupt: UnboundedSender<()>,
}

/// A session with this service.
pub(super) fn session(fake: &Arc<Fake>, json: bool) -> (Session, Ends) {
    let (interrupt, interrupts) = unbounded_channel();
    let (out, err) = (Paper::default(), Paper::default());
    let session = Session {
        remote: fake.clone(),
        address: "unix:/s".parse().unwrap(),
        out: Out::new(Box::new(out.clone()), json),
        display: Box::new(Plain::new(Box::new(err.clone()))),
        interrupts: Interrupts(Some(interrupts)),
    };
    let ends = Ends {
        out,
        err,
        interrupt,
    };
    (session, ends)
}

pub(super) const ID: &str = "0123456789abcdef0123456789abcdef";

pub(super) fn problem(status: u16, detail: &str) -> RemoteError {
    RemoteError::Problem {
        status,
        title: "A problem".to_owned(),
        detail: detail.to_owned(),
    }
}

pub(super) fn vm(name: &str, state: VmState) -> Vm {
    Vm {
        name: name.to_owned(),
        state,
        detail: None,
        machine: "kvm".to_owned(),
        pid: Some(42),
        migration: None,
        spec: VmSpec {
            name: name.to_owned(),
            machine: "auto".to_owned(),
            ram_mib: 512,
            vcpus: 2,
            boot: BootSpec::default(),
            disks: Vec::new(),
            dirty_rings: false,
        },
    }
}

pub(super) fn migration(state: MigrationState) -> Migration {
    Migration {
        id: ID.to_owned(),
        vm: "web-1".to_owned(),
        direction: Direction::Outgoing,
        peer: "host-b".to_owned(),
        state,
        reason: None,
        asked_ms: 1_700_000_000_000,
        ended_ms: None,
        progress: None,
        blackout_ms: None,
        total_ms: None,
        traceparent: None,
    }
}

pub(super) fn item(name: &str, state: MigrationState) -> DrainItem {
    DrainItem {
        vm: name.to_owned(),
        to: "host-b".to_owned(),
        migration: (state != MigrationState::Queued).then(|| name.to_owned()),
        state,
        reason: None,
        blackout_ms: None,
        total_ms: None,
    }
}

pub(super) fn drain(over: bool, items: Vec<DrainItem>) -> Drain {
    Drain {
        request: DrainRequest::default(),
        cancelled: false,
        over,
        items,
    }
}

pub(super) fn host() -> HostInfo {
    HostInfo {
        name: "host-a".to_owned(),
        software: "vmferry 0.1.0".to_owned(),
        protocol: (1, 3),
        kvm_problem: None,
        cpu_features: vec!["avx2".to_owned(), "sse4_2".to_owned()],
        memory_mib: 24 << 10,
        available_mib: 1536,
        processors: 2,
        limits: Limits::default(),
        peers: [("host-b".to_owned(), "https://host-b:7070".to_owned())].into(),
        vms: 3,
        migrations_running: 1,
        migrations_queued: 0,
        now_ms: 1_700_000_000_000,
    }
}

pub(super) fn report(outcome: &str) -> MigrationReport {
    let report = json!({
        "migration_id": ID, "outcome": outcome, "reason": null, "machine": "kvm",
        "transport": "quic", "streams": 2, "tracker": "wp-group", "codec": "auto", "vcpus": 2,
        "ram_bytes": 536_870_912, "total_ms": 4200.0, "blackout_ms": 12.3,
        "blackout_breakdown_ms": null, "blackout_guest_ms": null, "blackout_predicted_ms": null,
        "passes": [], "bytes_memory": 0, "bytes_wire": 0, "bytes_by_codec": {}, "pages_zero": 0,
        "pages_unchanged": 0, "decisions": [],
        "notifications": {
            "answered": 0, "pages_released": 0, "stall_ms": 0.0, "longest_stall_ms": 0.0,
            "throttled_ms": 0.0
        },
        "vcpu_run_delay_ms": 0.0,
        "guest": {
            "work_rate_before": null, "work_rate_during": null, "work_rate_after": null,
            "brownout_pct": null, "brownout_lost_ms": null, "lost_work_ms": null, "verify": null
        },
        "peak_extra_rss_bytes": 0, "peak_extra_rss_destination_bytes": null
    });
    serde_json::from_value(report).unwrap()
}
