//! The VM process under test: the engine, a machine, a disk, a journal, with points in between.

use std::error::Error;
use std::fmt::Display;
use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use vmferry_codecs::{CodecChoice, CodecSpec};
use vmferry_engine::destination::{
    self, DestinationEnd, DestinationHandle, DestinationOptions, config_of,
};
use vmferry_engine::source::{self, SourceEnd, SourceHandle, SourceOptions};
use vmferry_journal::{Journal, SledJournal};
use vmferry_machine::{
    Beat, EventSink, Machine, MachineConfig, MachineError, MachineEvent, MachineState, OpenDisk,
    Recorder, Role,
};
use vmferry_protocol::errors::chain;
use vmferry_protocol::message::VmShape;
use vmferry_protocol::ownership::open_fences;
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::Outcome;
use vmferry_protocol::storage::JobRecord;
use vmferry_transports::{LinkHint, TlsIdentity, TransportKind, connector, listen};

use super::disk::WatchedDisk;
use super::gate::Gate;
use super::log::Log;
use super::parts::{Shared, WatchedJournal, WatchedMachine};
use super::talk::{Command, Event, LeftAs, Order, Setup, Status};
use super::{DESTINATION_HOST, SOURCE_HOST};
use crate::decorated::Decorated;

/// A dead peer shows by its connection's end; this is for one that hangs.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a destination stays there for a source that has not said goodbye.
const LINGER: Duration = Duration::from_secs(20);
/// Between two looks at heartbeats.
const LOOK_EVERY: Duration = Duration::from_millis(1);

fn tell(event: &Event) {
    let line = serde_json::to_string(event).expect("an event is plain data");
    let mut out = std::io::stdout().lock();
    // Nobody listens: the harness is gone, and this process ends soon.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What machines are made with here.
#[derive(Clone)]
struct Parts {
    shared: Shared,
    verdicts: Arc<Mutex<Vec<u32>>>,
}

impl Parts {
    fn sink(&self, config: &MachineConfig) -> EventSink {
        let (vcpus, verdicts) = (config.vcpus as usize, self.verdicts.clone());
        Arc::new(move |event| match event {
            MachineEvent::WorkloadReady => tell(&Event::Works),
            MachineEvent::Verified { result, .. } => {
                let mut verdicts = lock(&verdicts);
                verdicts.push(result);
                if verdicts.len() == vcpus {
                    tell(&Event::Verified(verdicts.clone()));
                }
            }
            MachineEvent::Stopped { detail } | MachineEvent::Crashed { detail } => {
                tell(&Event::Ended(detail));
            }
        })
    }

    fn make(&self, config: &MachineConfig, role: Role) -> Result<Arc<dyn Machine>, MachineError> {
        let shared = self.shared.clone();
        let opener: OpenDisk = Arc::new(move |spec, role| {
            let inner = vmferry_block::open(spec, role)?;
            Ok(WatchedDisk::over(inner, shared.clone()))
        });
        let inner = vmferry_machine::create_with(config, self.sink(config), role, &opener)?;
        let shared = self.shared.clone();
        let around = WatchedMachine(shared);
        Ok(Arc::new(Decorated { inner, around }))
    }

    /// A machine that begins here, with fences where somebody else may still write.
    fn boot(
        &self,
        config: &MachineConfig,
        fences: &[JobRecord],
    ) -> Result<Arc<dyn Machine>, MachineError> {
        let machine = self.make(config, Role::Owner)?;
        for job in fences {
            machine.disks().fence(*job);
        }
        machine.boot()?;
        machine.resume()?;
        Ok(machine)
    }
}

/// The guest, once it is here and while it may be.
type Guest = Arc<Mutex<Option<Arc<dyn Machine>>>>;

struct Vm {
    setup: Setup,
    parts: Parts,
    journal: Arc<WatchedJournal>,
    machine: Guest,
}

/// Runs a VM process as its argument and then standard input say, until either ends.
///
/// # Errors
/// What it cannot begin without.
pub fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1).ok_or("give a setup, in JSON")?;
    let setup: Setup = serde_json::from_str(&argument)?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let gate = Arc::new(Gate::new(setup.point, |point| tell(&Event::At(point))));
    let shared = Shared {
        side: setup.side,
        gate: gate.clone(),
        log: Arc::new(Log::open(&setup.log, setup.process)?),
    };
    let journal = Arc::new(WatchedJournal {
        inner: Arc::new(SledJournal::open(&setup.dir.join("journal"))?),
        shared: shared.clone(),
        owner: AtomicBool::new(false),
        tell: Box::new(|kept| tell(&Event::Kept(kept))),
    });
    let vm = Vm {
        setup,
        parts: Parts {
            shared,
            verdicts: Arc::default(),
        },
        journal,
        machine: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let commands = listen_to_harness(gate);
    actix::System::with_tokio_rt(move || runtime).block_on(vm.serve(commands));
    Ok(())
}

/// What the harness says. To go on is for no queue: whoever works on that may be who stands.
fn listen_to_harness(gate: Arc<Gate>) -> mpsc::UnboundedReceiver<Command> {
    let (told, commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Command::Go) => gate.open(),
                Ok(command) => drop(told.send(command)),
                Err(error) => tell(&Event::Refused(error.to_string())),
            }
        }
        gate.open();
        let _ = told.send(Command::Exit);
    });
    commands
}

impl Vm {
    async fn serve(self, mut commands: mpsc::UnboundedReceiver<Command>) {
        tell(&Event::Up);
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Exit) {
                break;
            }
            if let Err(why) = self.obey(command).await {
                tell(&Event::Refused(why));
            }
        }
        self.parts.shared.gate.open();
        if let Some(machine) = lock(&self.machine).take() {
            machine.stop();
        }
    }

    async fn obey(&self, command: Command) -> Result<(), String> {
        match command {
            Command::Boot(config) => self.boot(*config).await?,
            Command::Receive { token } => self.receive(&token).await?,
            Command::Migrate(order) => self.migrate(&order)?,
            Command::Advance => {
                let recorder = self.guest()?.workload().cloned().ok_or("no workload")?;
                std::thread::spawn(move || {
                    advance(&recorder);
                    tell(&Event::Works);
                });
            }
            Command::Verify => {
                lock(&self.parts.verdicts).clear();
                let machine = self.guest()?;
                machine.workload().ok_or("no workload")?.verify_settled();
            }
            Command::Status => self.status(),
            Command::Go | Command::Exit => {}
        }
        Ok(())
    }

    fn guest(&self) -> Result<Arc<dyn Machine>, String> {
        let machine = lock(&self.machine).clone();
        machine.ok_or_else(|| "no guest is here".to_owned())
    }

    async fn boot(&self, config: MachineConfig) -> Result<(), String> {
        let records = self.journal.records().map_err(|e| chain(&e))?;
        let fences = open_fences(&records);
        let fences: Vec<JobRecord> = fences.into_iter().map(|(_, job)| job).collect();
        let parts = self.parts.clone();
        let (done, booted) = oneshot::channel();
        std::thread::spawn(move || drop(done.send(parts.boot(&config, &fences))));
        let machine = booted.await.map_err(|_| "booting panicked")?;
        *lock(&self.machine) = Some(machine.map_err(|e| chain(&e))?);
        Ok(())
    }

    fn identity(&self, host: &str) -> Result<TlsIdentity, String> {
        let at = |name: &str| self.setup.keys.join(name);
        let (certificate, key) = (at(&format!("{host}.pem")), at(&format!("{host}.key")));
        TlsIdentity::from_files(&at("ca.pem"), &certificate, &key).map_err(|e| chain(&e))
    }

    async fn receive(&self, token: &str) -> Result<(), String> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (tls, hint) = (self.identity(DESTINATION_HOST)?, LinkHint::default());
        let listener = listen(TransportKind::Tcp, at, &tls, hint).await;
        let listener = listener.map_err(|e| chain(&e))?;
        let address = listener.local_addr().map_err(|e| chain(&e))?;
        let (parts, delay_ms) = (self.parts.clone(), self.setup.delay_ms);
        let maker = move |shape: &VmShape| {
            let mut config = config_of(shape)?;
            for disk in &mut config.disks {
                disk.delay_ms = delay_ms;
            }
            parts.make(&config, Role::Heir).map_err(|e| chain(&e))
        };
        let options = DestinationOptions {
            silence: SILENCE,
            linger: LINGER,
            ..DestinationOptions::new(parse(token)?)
        };
        let journal = self.journal.clone();
        let handle = destination::start(listener, Arc::new(maker), journal, options);
        actix::spawn(watch_arrival(handle, self.machine.clone()));
        tell(&Event::Listening(address));
        Ok(())
    }

    fn migrate(&self, order: &Order) -> Result<(), String> {
        let machine = self.guest()?;
        let (tls, hint) = (self.identity(SOURCE_HOST)?, LinkHint::default());
        let kind = TransportKind::Tcp;
        let connector = connector(kind, order.to, DESTINATION_HOST, &tls, hint, None);
        let (migration, token) = (parse(&order.migration)?, parse(&order.token)?);
        let options = SourceOptions {
            codec: CodecChoice::Fixed(CodecSpec::Lz4),
            compressors: 1,
            // On a busy machine the pause may be long; that is not what this is about.
            limits: Limits {
                max_blackout: SILENCE,
                ..Limits::default()
            },
            silence: SILENCE,
            reconnect_for: Duration::from_millis(self.setup.reconnect_ms),
            ..SourceOptions::new(migration, token, parse(&order.tracker)?)
        };
        let connector = connector.map_err(|e| chain(&e))?;
        let handle = source::start(machine, connector, self.journal.clone(), options)?;
        actix::spawn(watch_departure(handle, self.machine.clone()));
        Ok(())
    }

    fn status(&self) {
        let machine = lock(&self.machine).clone();
        let stats = machine.as_ref().map(|m| m.disks().stats());
        let stats = stats.unwrap_or_default();
        tell(&Event::Status(Status {
            running: machine.is_some_and(|m| m.state() == MachineState::Running),
            owner: self.journal.owner.load(Ordering::SeqCst),
            fences: stats.fences,
            errors: stats.errors,
        }));
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("'{text}': {e}"))
}

async fn watch_arrival(mut handle: DestinationHandle, here: Guest) {
    while let Some(arrived) = handle.arrived.recv().await {
        *lock(&here) = Some(arrived.machine);
        tell(&Event::Arrived);
    }
    if let Ok(DestinationEnd { failure, .. }) = handle.ended.await {
        tell(&Event::Received(failure));
    }
}

async fn watch_departure(handle: SourceHandle, here: Guest) {
    let Ok(SourceEnd { outcome, .. }) = handle.ended.await else {
        return;
    };
    let (left, detail) = match outcome {
        Outcome::Completed => (LeftAs::Completed, String::new()),
        Outcome::Aborted { detail, .. } => (LeftAs::Aborted, detail),
        Outcome::Undecided { detail } => (LeftAs::Undecided, detail),
    };
    if left == LeftAs::Completed {
        let machine = lock(&here).take();
        let _ = tokio::task::spawn_blocking(move || drop(machine)).await;
    }
    tell(&Event::Left(left, detail));
}

/// Returns when every vCPU has worked, and every disk driver had a request done.
fn advance(recorder: &Recorder) {
    let last = || -> Vec<u64> {
        let (work, disk) = (recorder.beats(), recorder.disk_beats());
        let last = |beats: &Vec<Beat>| beats.last().map_or(0, |b| b.work);
        work.iter().chain(&disk).map(last).collect()
    };
    let before = last();
    while last()
        .iter()
        .zip(&before)
        .any(|(now, before)| now <= before)
    {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
