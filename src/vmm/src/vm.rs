//! The VM of a VM process: what the requests of the control socket mean.
//!
//! One machine at most, and one migration at a time. A request that does not fit gets an answer
//! that says why, and changes nothing.

mod decide;
mod settlement;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use vmferry_engine::destination::{self, Arrived, DestinationEnd};
use vmferry_engine::source::{self, SourceEnd};
use vmferry_journal::{Journal, JournalError};
use vmferry_machine::{Beat, Machine, MachineConfig, MachineEvent, MachineState, Recorder, Role};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;
use vmferry_protocol::source::Outcome;
use vmferry_transports::{Bandwidth, Connector};

use crate::api::{
    Answer, Event, Inspection, Migrated, MigrationStatus, ProgressLine, Request, Status,
    WorkloadCommand,
};
use crate::ends;
use crate::events::{Happened, Happenings, Verdict, sink};
use crate::migrate;
use crate::past;
use crate::process;
use crate::server::Asked;

/// A migration under way.
enum Job {
    None,
    Leaving(Leaving),
    Arriving(destination::Operator, Option<String>),
}

/// The machine leaves.
struct Leaving {
    id: String,
    operator: source::SourceOperator,
    connector: Arc<dyn Connector>,
    progress: watch::Receiver<Option<ProgressLine>>,
}

/// The VM.
pub(crate) struct Vm {
    dir: PathBuf,
    journal: Arc<dyn Journal>,
    events: broadcast::Sender<Event>,
    happenings: Happenings,
    happened: mpsc::UnboundedReceiver<Happened>,
    machine: Option<Arc<dyn Machine>>,
    /// Heartbeats of the machine, or of the last one.
    recorder: Option<Arc<Recorder>>,
    verdict: Verdict,
    job: Job,
    resumed_ns: Option<u64>,
    /// How the last machine ended, where that is not by migrating.
    last_words: Option<String>,
}

type Reply = Result<Answer, String>;

const SETTLING_RISKS: &str = "this lifts the fences around writes that the former host of this \
    guest had in flight. If that host, or the storage on its behalf, still carries one out, it \
    overwrites what the guest wrote since, and nobody will notice. Make sure that the host is off, \
    or that the storage has ended its sessions; then ask again with nobody_else_writes: true";

impl Vm {
    /// `dir` is the VM's directory.
    pub(crate) fn new(
        dir: PathBuf,
        journal: Arc<dyn Journal>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let (happenings, happened) = mpsc::unbounded_channel();
        Self {
            dir,
            journal,
            events,
            happenings,
            happened,
            machine: None,
            recorder: None,
            verdict: Verdict::default(),
            job: Job::None,
            resumed_ns: None,
            last_words: None,
        }
    }

    /// Serves requests until one of them is to shut down.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Asked>) {
        loop {
            tokio::select! {
                asked = requests.recv() => {
                    let Some(Asked { request, answer }) = asked else { break };
                    let over = matches!(request, Request::Shutdown);
                    if over {
                        self.shut_down().await;
                    }
                    let _ = answer.send(self.answer(request).await);
                    if over {
                        break;
                    }
                }
                Some(what) = self.happened.recv() => self.happen(what).await,
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Boot(config) => self.boot(*config).await,
            Request::Pause => self.with_machine(|m| m.pause()).await,
            Request::Resume => {
                self.must_be_here()?;
                self.with_machine(|m| m.resume()).await
            }
            Request::Receive(options) => {
                self.must_be_free()?;
                if self.machine.is_some() {
                    return Err("there is a machine here already".to_owned());
                }
                let (journal, to) = (self.journal.clone(), self.happenings.clone());
                let (handle, address) = migrate::receive(&options, journal, to).await?;
                self.job = Job::Arriving(handle.operator(), options.migration);
                self.resumed_ns = None;
                let to = self.happenings.clone();
                actix::spawn(migrate::watch_destination(handle, to));
                Ok(Answer::Listening { address })
            }
            Request::Migrate(options) => {
                self.must_be_here()?;
                self.must_be_free()?;
                let machine = self.the_machine()?;
                let journal = Arc::new(Lasting(self.journal.clone()));
                let (handle, id, connector) = migrate::leave(machine, journal, &options).await?;
                let (last, progress) = watch::channel(None);
                let migration_id = id.to_string();
                self.job = Job::Leaving(Leaving {
                    id: migration_id.clone(),
                    operator: handle.operator(),
                    connector,
                    progress,
                });
                let (events, to) = (self.events.clone(), self.happenings.clone());
                actix::spawn(migrate::watch_source(handle, last, events, to));
                Ok(Answer::Migrating { migration_id })
            }
            Request::Cancel => match &self.job {
                Job::None => Err("there is no migration to cancel".to_owned()),
                Job::Leaving(job) => {
                    job.operator.cancel();
                    Ok(Answer::Done)
                }
                Job::Arriving(job, _) => {
                    job.cancel();
                    Ok(Answer::Done)
                }
            },
            Request::Limit { link_mbit } => match &self.job {
                Job::Leaving(job) => {
                    job.connector.set_limit(Bandwidth::from_mbit(link_mbit));
                    Ok(Answer::Done)
                }
                _ => Err("there is no migration from here that could be limited".to_owned()),
            },
            Request::Workload(command) => self.tell_workload(command),
            Request::SettleStorage {
                nobody_else_writes: true,
            } => self.settle_storage().await,
            Request::SettleStorage { .. } => Err(SETTLING_RISKS.to_owned()),
            Request::Decide { migration, here } => self.decide(&migration, here).await,
            Request::Unconfirmed => Ok(Answer::Unconfirmed(match &self.job {
                Job::Leaving(job) => job.operator.unconfirmed().await,
                _ => Vec::new(),
            })),
            Request::SettledThere { keys } => match &self.job {
                Job::Leaving(job) => {
                    job.operator.settled_there(keys);
                    Ok(Answer::Done)
                }
                _ => Err("there is no migration from here that waits for it".to_owned()),
            },
            Request::ToldSettled {
                migration,
                settlements,
            } => self.told_settled(&migration, settlements).await,
            Request::Storage => Ok(Answer::Storage(self.the_machine()?.disks().stats())),
            Request::Heartbeats { since_ns } => {
                Ok(Answer::Heartbeats(self.beats(Recorder::beats, since_ns)))
            }
            Request::DiskBeats { since_ns } => {
                let beats = self.beats(Recorder::disk_beats, since_ns);
                Ok(Answer::Heartbeats(beats))
            }
            Request::Inspect => self.inspect().await,
            Request::Status => Ok(Answer::Status(Box::new(self.status()))),
            // Answered by the server itself, and by `run`.
            Request::Subscribe | Request::Shutdown => Ok(Answer::Done),
        }
    }

    fn must_be_free(&self) -> Result<(), String> {
        match self.job {
            Job::None => Ok(()),
            _ => Err("a migration is under way: wait for its end, or cancel it".to_owned()),
        }
    }

    /// One that was handed over is nobody's to let run here by guess, or to hand over again.
    fn must_be_here(&self) -> Result<(), String> {
        let records = self.journal.records().map_err(|e| chain(&e))?;
        past::fences(&records).map(drop)
    }

    fn the_machine(&self) -> Result<Arc<dyn Machine>, String> {
        self.machine
            .clone()
            .ok_or_else(|| "there is no machine here".to_owned())
    }

    fn tell_workload(&mut self, command: WorkloadCommand) -> Reply {
        let machine = self.the_machine()?;
        if machine.state() != MachineState::Running {
            return Err("the guest does not run, so it cannot verify anything".to_owned());
        }
        let recorder = machine
            .workload()
            .ok_or("this machine does not run the built-in workload")?;
        self.verdict.expect(machine.config().vcpus);
        match command {
            WorkloadCommand::Verify => recorder.verify(),
            WorkloadCommand::VerifySettled => recorder.verify_settled(),
        }
        Ok(Answer::Done)
    }

    async fn boot(&mut self, config: MachineConfig) -> Reply {
        self.must_be_free()?;
        if self.machine.is_some() {
            return Err("there is a machine here already".to_owned());
        }
        let records = self.journal.records().map_err(|e| chain(&e))?;
        let fences = past::fences(&records)?;
        let events = sink(self.happenings.clone());
        let machine = blocking(move || {
            let machine = vmferry_machine::create(&config, events, Role::Owner)?;
            for (_, job) in &fences {
                machine.disks().fence(*job);
            }
            machine.boot()?;
            machine.resume()?;
            Ok(machine)
        })
        .await?;
        self.adopt(machine);
        Ok(Answer::Done)
    }

    fn adopt(&mut self, machine: Arc<dyn Machine>) {
        self.recorder = machine.workload().cloned();
        self.machine = Some(machine);
        self.last_words = None;
    }

    async fn with_machine(
        &self,
        f: impl FnOnce(&dyn Machine) -> Result<(), vmferry_machine::MachineError> + Send + 'static,
    ) -> Reply {
        self.must_be_free()?;
        let machine = self.the_machine()?;
        blocking(move || f(&*machine)).await?;
        Ok(Answer::Done)
    }

    async fn happen(&mut self, what: Happened) {
        match what {
            Happened::Machine(event) => self.machine_says(event),
            Happened::Left(end) => self.left(*end).await,
            Happened::Arrived(Arrived {
                machine,
                resumed_ns,
            }) => {
                self.resumed_ns = Some(resumed_ns);
                self.adopt(machine);
                self.tell(Event::Arrived { resumed_ns });
            }
            Happened::Received(DestinationEnd {
                failure,
                io,
                peak_extra_rss_bytes,
                timeline,
            }) => {
                if let Some(reason) = &failure {
                    tracing::warn!(reason, "nothing has arrived");
                }
                let migration_id = match std::mem::replace(&mut self.job, Job::None) {
                    Job::Arriving(_, id) => id,
                    _ => None,
                };
                let end = Event::Received {
                    completed: failure.is_none(),
                    reason: failure,
                    io,
                    peak_extra_rss_bytes,
                    resumed_ns: self.resumed_ns,
                    migration_id: migration_id.clone(),
                    timeline,
                };
                self.ended(migration_id, end).await;
            }
        }
    }

    async fn left(&mut self, end: SourceEnd) {
        self.job = Job::None;
        if end.outcome == Outcome::Completed
            && let Some(machine) = self.machine.take()
        {
            // Unmapping gigabytes takes its time.
            let _ = tokio::task::spawn_blocking(move || drop(machine)).await;
        }
        if !matches!(end.outcome, Outcome::Completed | Outcome::Undecided { .. }) {
            self.stays_here(&end.report.migration_id);
        }
        let id = end.report.migration_id.clone();
        let end = Event::Migrated(Box::new(Migrated {
            report: end.report,
            start_ns: end.start_ns,
            pause_ns: end.pause_ns,
        }));
        self.ended(Some(id), end).await;
    }

    /// A migration has ended: that is on disk before it is told.
    async fn ended(&self, id: Option<String>, end: Event) {
        if let Some(id) = id {
            let (dir, copy) = (self.dir.clone(), end.clone());
            let written = tokio::task::spawn_blocking(move || ends::write(&dir, &id, &copy));
            if let Ok(Err(error)) = written.await {
                tracing::error!(%error, "the end of the migration could not be written down");
            }
        }
        self.tell(end);
    }

    async fn inspect(&self) -> Reply {
        let machine = self.the_machine()?;
        let inspect = move || -> Result<Inspection, String> {
            let mut populated_bytes = 0;
            machine
                .ram()
                .populated(|range| populated_bytes += range.bytes())
                .map_err(|e| chain(&e))?;
            Ok(Inspection {
                cpu_features: machine.cpu_features(),
                populated_bytes,
                disks_stay: machine.disks().may_move().err(),
            })
        };
        let inspected = tokio::task::spawn_blocking(inspect)
            .await
            .map_err(|e| format!("looking at the machine failed: {e}"))??;
        Ok(Answer::Inspected(Box::new(inspected)))
    }

    fn migration(&self) -> Option<MigrationStatus> {
        match &self.job {
            Job::None => None,
            Job::Leaving(job) => Some(MigrationStatus {
                id: Some(job.id.clone()),
                leaving: true,
                progress: job.progress.borrow().clone(),
            }),
            Job::Arriving(_, id) => Some(MigrationStatus {
                id: id.clone(),
                leaving: false,
                progress: None,
            }),
        }
    }

    fn machine_says(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::WorkloadReady => self.tell(Event::WorkloadReady),
            MachineEvent::Verified { result, .. } => {
                if let Some(verdict) = self.verdict.add(result) {
                    self.tell(Event::Verified { verdict });
                }
            }
            MachineEvent::Stopped { detail } => self.guest_ended(false, detail),
            MachineEvent::Crashed { detail } => self.guest_ended(true, detail),
        }
    }

    fn guest_ended(&mut self, crashed: bool, detail: String) {
        self.last_words = Some(detail.clone());
        self.tell(Event::GuestEnded { crashed, detail });
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    fn beats(&self, of: impl Fn(&Recorder) -> Vec<Vec<Beat>>, since_ns: u64) -> Vec<Vec<Beat>> {
        let mut vcpus = self.recorder.as_ref().map_or(Vec::new(), |r| of(r));
        for beats in &mut vcpus {
            let from = beats.partition_point(|b| b.time_ns < since_ns);
            beats.drain(..from);
        }
        vcpus
    }

    fn status(&self) -> Status {
        let (machine, detail) = match self.machine.as_ref().map(|m| m.state()) {
            None => ("none", self.last_words.clone()),
            Some(MachineState::Created) => ("created", None),
            Some(MachineState::Running) => ("running", None),
            Some(MachineState::Paused) => ("paused", None),
            Some(MachineState::Stopped) => ("stopped", self.last_words.clone()),
            Some(MachineState::Crashed(detail)) => ("crashed", Some(detail)),
        };
        Status {
            machine: machine.to_owned(),
            kind: self
                .machine
                .as_ref()
                .map(|m| m.config().kind.name().to_owned()),
            detail,
            migrating: !matches!(self.job, Job::None),
            migration: self.migration(),
            fds: process::open_fds(),
            threads: process::threads(),
            rss_bytes: process::rss_bytes(),
        }
    }

    async fn shut_down(&mut self) {
        if let Some(machine) = self.machine.take() {
            let _ = tokio::task::spawn_blocking(move || machine.stop()).await;
        }
    }
}

/// The journal of a machine that leaves: that it has left stays written there. Whoever finds the
/// directory must never take it for the guest's.
struct Lasting(Arc<dyn Journal>);

impl Journal for Lasting {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        self.0.append(records)
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        self.0.records()
    }

    fn forget(&self, _: MigrationId) -> Result<(), JournalError> {
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, vmferry_machine::MachineError> + Send + 'static,
) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    // Not one of the runtime's threads: those step back, and vCPU threads would inherit that.
    std::thread::Builder::new()
        .name("machine".to_owned())
        .spawn(move || drop(done.send(f())))
        .map_err(|e| format!("no thread for the machine: {e}"))?;
    match result.await {
        Ok(result) => result.map_err(|e| chain(&e)),
        Err(_) => Err("the machine's thread failed".to_owned()),
    }
}
