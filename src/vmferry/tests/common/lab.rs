//! VM processes to talk to over their control sockets, and moves between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use vmferry_engine::report::{MigrationReport, ReportOutcome};
use vmferry_machine::{Console, MachineConfig};
use vmferry_transports::keys::{Authority, KeyFiles};
use vmferry_vmm::SOCKET;
use vmferry_vmm::api::{
    Answer, Event, MigrateOptions, ProgressLine, ReceiveOptions, Request, Status, TlsFiles,
    WorkloadCommand,
};
use vmferry_vmm::client::{ClientError, VmmClient};

use super::BIN;

/// Hosts of one authority.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: TempDir,
    authority: Authority,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            authority: Authority::new().unwrap(),
        }
    }

    /// A file of this lab.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Certificates for a host.
    pub(crate) fn keys(&self, name: &str) -> KeyFiles {
        let keys = self.authority.issue(name).unwrap();
        keys.write_to(&self.path(name)).unwrap()
    }

    /// Starts the VM process of a new host.
    pub(crate) async fn host(&self, name: &str) -> Host {
        let (keys, dir) = (self.keys(name), self.path(name));
        let mut child = Command::new(BIN)
            .args(["vmm", "--exit-with-parent", "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await.unwrap();
        assert_eq!(line, "ready\n");
        let (client, events) = VmmClient::connect(&dir.join(SOCKET)).await.unwrap();
        client.call(Request::Subscribe).await.unwrap();
        Host {
            name: name.to_owned(),
            keys,
            client,
            events,
            child,
            _stdin: stdin,
        }
    }
}

/// What a process uses. The threads' names, but for those of the journal's pool, which grows and
/// shrinks as it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) fds: usize,
    pub(crate) threads: Vec<String>,
}

const POOL: &str = "sled-io";

/// How a reception ended.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) completed: bool,
    pub(crate) reason: Option<String>,
}

/// A VM process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) keys: KeyFiles,
    client: VmmClient,
    events: mpsc::UnboundedReceiver<Event>,
    child: Child,
    _stdin: Option<ChildStdin>,
}

pub(crate) fn tls(keys: &KeyFiles) -> TlsFiles {
    TlsFiles {
        ca: keys.ca.clone(),
        cert: keys.certificate.clone(),
        key: keys.key.clone(),
    }
}

impl Host {
    pub(crate) async fn call(&mut self, request: Request) -> Result<Answer, ClientError> {
        self.client.call(request).await
    }

    /// Waits for an event, passing over others; the guest's end is a failure.
    pub(crate) async fn event<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            let event = self.events.recv().await;
            match event.unwrap_or_else(|| panic!("{} has gone away", self.name)) {
                Event::GuestEnded { detail, .. } => panic!("{}: {detail}", self.name),
                event => {
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
            }
        }
    }

    /// Boots a machine, and waits until its workload works.
    pub(crate) async fn boot(&mut self, config: MachineConfig) {
        self.call(Request::Boot(Box::new(config))).await.unwrap();
        self.event(|event| matches!(event, Event::WorkloadReady).then_some(()))
            .await;
    }

    /// What the guest says of its RAM, and of its disk as far as nothing is in flight.
    pub(crate) async fn verify(&mut self) -> String {
        self.verdict(WorkloadCommand::Verify).await
    }

    /// What it says when everything in flight has ended.
    pub(crate) async fn verify_settled(&mut self) -> String {
        self.verdict(WorkloadCommand::VerifySettled).await
    }

    async fn verdict(&mut self, command: WorkloadCommand) -> String {
        self.call(Request::Workload(command)).await.unwrap();
        self.event(|event| match event {
            Event::Verified { verdict } => Some(verdict),
            _ => None,
        })
        .await
    }

    pub(crate) async fn status(&mut self) -> Status {
        match self.call(Request::Status).await.unwrap() {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// The guest is here, runs, and has all that it had.
    pub(crate) async fn runs_unharmed(&mut self) {
        let status = self.status().await;
        assert_eq!(status.machine, "running", "{}: {status:?}", self.name);
        assert!(!status.migrating, "{}: {status:?}", self.name);
        assert_eq!(self.verify().await, "OK", "{}", self.name);
    }

    /// There is no guest here.
    pub(crate) async fn is_empty(&mut self) {
        let status = self.status().await;
        assert_eq!(status.machine, "none", "{}: {status:?}", self.name);
        assert!(!status.migrating, "{}: {status:?}", self.name);
    }

    pub(crate) async fn used(&mut self) -> Used {
        let fds = self.status().await.fds;
        let tasks = format!("/proc/{}/task", self.child.id().expect("it runs"));
        let names = fs::read_dir(tasks).unwrap().filter_map(|task| {
            // A thread may have ended meanwhile.
            let name = fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
            (!name.starts_with(POOL)).then(|| name.trim_end().to_owned())
        });
        let threads = names.collect();
        Used { fds, threads }
    }

    /// The same, and what a guest that has once been moved, or nearly, adds: the descriptor by which
    /// its RAM is looked at stays open as long as its RAM.
    pub(crate) async fn used_with_ram(&mut self) -> Used {
        let Used { fds, threads } = self.used().await;
        Used {
            fds: fds + 1,
            threads,
        }
    }

    /// Waits until the process uses no more than `most`: threads end after they were told to.
    pub(crate) async fn settles(&mut self, most: Used) {
        let mut last = self.used().await;
        let settled = async {
            while last.fds > most.fds || last.threads.len() > most.threads.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                last = self.used().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), settled)
            .await
            .is_err()
        {
            panic!("{} uses {last:?}, at most {most:?} expected", self.name);
        }
    }

    /// Waits for a moment of a migration.
    pub(crate) async fn progress(&mut self, mut wanted: impl FnMut(&ProgressLine) -> bool) {
        self.event(|event| match event {
            Event::Progress(line) => wanted(&line).then_some(()),
            Event::Migrated(end) => panic!("it ended before that: {:?}", end.report),
            _ => None,
        })
        .await;
    }

    /// How the migration from here ends.
    pub(crate) async fn departure(&mut self) -> MigrationReport {
        self.event(|event| match event {
            Event::Migrated(end) => Some(end.report),
            _ => None,
        })
        .await
    }

    /// The same, for one that does not complete: its reason.
    pub(crate) async fn stays(&mut self, outcome: ReportOutcome) -> String {
        let report = self.departure().await;
        assert_eq!(report.outcome, outcome, "{:?}", report.reason);
        report.reason.expect("a reason")
    }

    /// How the reception here ends.
    pub(crate) async fn arrival(&mut self) -> Received {
        self.event(|event| match event {
            Event::Received {
                completed, reason, ..
            } => Some(Received { completed, reason }),
            _ => None,
        })
        .await
    }

    /// Ends a reception that may or may not have ended by itself; why there is no guest.
    pub(crate) async fn stops_waiting(&mut self) -> String {
        let _ = self.call(Request::Cancel).await;
        let received = self.arrival().await;
        assert!(!received.completed, "{received:?}");
        self.is_empty().await;
        received.reason.expect("a reason")
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A move from one host to another, as it is to be asked for.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) receive: ReceiveOptions,
    pub(crate) migrate: MigrateOptions,
}

impl Move {
    /// Over QUIC, without a limit.
    pub(crate) fn new(from: &Host, to: &Host) -> Self {
        static TOKENS: AtomicU64 = AtomicU64::new(1);
        let token = format!("{:032x}", TOKENS.fetch_add(1, Ordering::Relaxed));
        let any = ([127, 0, 0, 1], 0).into();
        Self {
            receive: ReceiveOptions {
                transport: "quic".to_owned(),
                listen: any,
                tls: tls(&to.keys),
                token: token.clone(),
                link_mbit: 0,
                migration: None,
                come_within_s: None,
                machine: None,
                serial: Console::None,
                debugcon: Console::None,
            },
            migrate: MigrateOptions {
                migration: None,
                transport: "quic".to_owned(),
                to: any,
                server_name: to.name.clone(),
                tls: tls(&from.keys),
                token,
                streams: 2,
                delta_cache_mib: 16,
                codec: "auto".to_owned(),
                compressors: 0,
                budget: None,
                tracker: "auto".to_owned(),
                group: "auto".to_owned(),
                throttle_pct: 0,
                min_passes: 1,
                link_mbit: 0,
                max_blackout_ms: 300.0,
                traceparent: None,
            },
        }
    }

    pub(crate) fn over(mut self, transport: &str) -> Self {
        transport.clone_into(&mut self.receive.transport);
        transport.clone_into(&mut self.migrate.transport);
        self
    }

    /// And so that it takes its time: nothing is compressed.
    pub(crate) fn slow(mut self) -> Self {
        "raw".clone_into(&mut self.migrate.codec);
        self.receive.link_mbit = super::SLOW_MBIT;
        self.migrate.link_mbit = super::SLOW_MBIT;
        self
    }

    /// On a busy machine the pause may be long; that is not what every test is about.
    pub(crate) fn patient(mut self) -> Self {
        self.migrate.max_blackout_ms = 20_000.0;
        self
    }

    /// `to` waits for the guest.
    pub(crate) async fn listen(&mut self, to: &mut Host) {
        let receive = Request::Receive(self.receive.clone());
        match to.call(receive).await.unwrap() {
            Answer::Listening { address } => self.migrate.to = address,
            other => panic!("{other:?}"),
        }
    }

    /// `from` begins.
    pub(crate) async fn depart(&self, from: &mut Host) {
        let migrate = Request::Migrate(self.migrate.clone());
        let answer = from.call(migrate).await.unwrap();
        assert!(matches!(answer, Answer::Migrating { .. }), "{answer:?}");
    }

    /// Both.
    pub(crate) async fn begin(mut self, from: &mut Host, to: &mut Host) {
        self.listen(to).await;
        self.depart(from).await;
    }

    /// From the beginning to the end: the guest runs at `to`, and nothing is left at `from`.
    pub(crate) async fn complete(self, from: &mut Host, to: &mut Host) -> MigrationReport {
        self.patient().begin(from, to).await;
        let report = from.departure().await;
        assert_eq!(report.outcome, ReportOutcome::Completed, "{report:?}");
        let received = to.arrival().await;
        assert!(received.completed, "{received:?}");
        from.is_empty().await;
        report
    }
}
