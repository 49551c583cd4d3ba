//! A guest, and a migration of it from one side to the other, both in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use vmferry_block::{BlockBackend, MemoryDisk, OpenError};
use vmferry_codecs::{CodecChoice, CodecSpec};
use vmferry_engine::destination::{
    self, Arrived, DestinationEnd, DestinationHandle, DestinationOptions, MakeMachine, config_of,
};
use vmferry_engine::source::{self, SourceEnd, SourceHandle, SourceOptions};
use vmferry_guest::abi;
use vmferry_journal::{Journal, MemoryJournal};
use vmferry_machine::{
    Boot, Console, DiskSource, EventSink, Machine, MachineConfig, MachineEvent, MachineKind,
    MachineState, OpenDisk, Recorder, Role,
};
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message::VmShape;
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::Outcome;
use vmferry_protocol::trace::TraceParent;
use vmferry_tracker::auto::{self, MachineSort};
use vmferry_transports::keys::Authority;
use vmferry_transports::{
    Connector, LinkHint, Listener, TlsIdentity, TransportKind, connector, listen, memory,
};

use super::faults::{FaultyConnector, Script, Way};
use super::guard;

/// Bytes of RAM of every guest here.
const RAM: u64 = 64 << 20;
/// Name of the host that listens.
const HOST: &str = "host-b";

type Events = mpsc::UnboundedReceiver<MachineEvent>;

fn sink() -> (EventSink, Events) {
    let (sender, events) = mpsc::unbounded_channel();
    (Arc::new(move |event| drop(sender.send(event))), events)
}

/// Whether KVM machines can be made here.
#[must_use]
pub fn has_kvm() -> bool {
    let open = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if open.is_err() {
        println!("SKIPPED (no /dev/kvm)");
    }
    open.is_ok()
}

/// A machine that runs the built-in workload, and what it says.
#[derive(Debug)]
pub struct Guest {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    events: Events,
}

impl Guest {
    /// Boots a small machine, and waits until its workload works.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn boot(kind: MachineKind, vcpus: u32, workload: &str) -> Self {
        Self::boot_with(kind, vcpus, workload, None).await
    }

    /// A process machine that keeps requests to `disk` in flight, and has little else to do.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn on_disk(disk: &MemoryDisk, disk_work: &str) -> Self {
        let workload = format!("workload=idle ws-mib=1 fill-mib=2 seed=5 {disk_work}");
        Self::boot_with(MachineKind::Process, 1, &workload, Some(disk)).await
    }

    async fn boot_with(
        kind: MachineKind,
        vcpus: u32,
        workload: &str,
        disk: Option<&MemoryDisk>,
    ) -> Self {
        let (events, said) = sink();
        let config = MachineConfig {
            kind,
            ram_bytes: RAM,
            vcpus,
            boot: Boot::Workload {
                cmdline: workload.to_owned(),
            },
            serial: Console::None,
            debugcon: Console::None,
            dirty_rings: false,
            // Where it is, the opener knows.
            disks: disk
                .map(|_| DiskSource::File("in memory".into()).spec())
                .into_iter()
                .collect(),
        };
        let opener = opener(disk.cloned());
        let machine =
            vmferry_machine::create_with(&config, events, Role::Owner, &opener).expect("a machine");
        machine.boot().expect("it boots");
        machine.resume().expect("it runs");
        let mut guest = Self {
            machine,
            events: said,
        };
        guest
            .hear("the workload's start", |e| {
                *e == MachineEvent::WorkloadReady
            })
            .await;
        guest.look();
        guest
    }

    /// A look at which pages exist: RAM keeps what it opens for that, which is no leak.
    fn look(&self) {
        self.machine.ram().populated(|_| ()).expect("RAM");
    }

    /// A process machine with little to do: a hot set that is rewritten at an easy pace.
    pub async fn small() -> Self {
        let workload = "workload=dense ws-mib=1 fill-mib=4 rate=2000 seed=5";
        Self::boot(MachineKind::Process, 1, workload).await
    }

    /// With the machine decorated.
    #[must_use]
    pub fn with(self, wrap: impl FnOnce(Arc<dyn Machine>) -> Arc<dyn Machine>) -> Self {
        Self {
            machine: wrap(self.machine),
            events: self.events,
        }
    }

    async fn hear(&mut self, what: &str, wanted: impl Fn(&MachineEvent) -> bool) -> MachineEvent {
        guard(what, async {
            loop {
                match self.events.recv().await {
                    Some(MachineEvent::Crashed { detail } | MachineEvent::Stopped { detail }) => {
                        panic!("{what}: the guest ended: {detail}")
                    }
                    Some(event) if wanted(&event) => return event,
                    Some(_) => {}
                    None => panic!("{what}: the machine is gone"),
                }
            }
        })
        .await
    }

    /// Has every vCPU verify its share of RAM, and of the disk what is not in flight.
    ///
    /// # Panics
    /// Where one is not content, or does not run.
    pub async fn verify(&mut self) {
        self.hear_verdicts(Recorder::verify).await;
    }

    /// The same with the whole disk, once everything in flight has ended.
    ///
    /// # Panics
    /// Where one is not content, or does not run.
    pub async fn verify_settled(&mut self) {
        self.hear_verdicts(Recorder::verify_settled).await;
    }

    async fn hear_verdicts(&mut self, ask: impl Fn(&Recorder)) {
        assert_eq!(self.machine.state(), MachineState::Running);
        ask(self.machine.workload().expect("a workload"));
        for _ in 0..self.machine.config().vcpus {
            let verified = |e: &MachineEvent| matches!(e, MachineEvent::Verified { .. });
            let MachineEvent::Verified { vcpu, result } = self.hear("a verify", verified).await
            else {
                continue;
            };
            assert_eq!(result, abi::VERIFY_OK, "vCPU {vcpu} is not content");
        }
    }
}

/// The transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Pipes in memory.
    Memory,
    /// TCP with TLS.
    Tcp,
    /// QUIC.
    Quic,
}

impl Over {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Tcp, Self::Quic];

    /// A connector and its listener.
    ///
    /// # Panics
    /// Where there can be none.
    pub async fn pair(self) -> (Arc<dyn Connector>, Box<dyn Listener>) {
        static HOSTS: OnceLock<(TlsIdentity, TlsIdentity)> = OnceLock::new();
        let kind = match self {
            Self::Memory => {
                let (connector, listener) = memory::pair(None);
                return (Arc::new(connector), Box::new(listener));
            }
            Self::Tcp => TransportKind::Tcp,
            Self::Quic => TransportKind::Quic,
        };
        let (a, b) = HOSTS.get_or_init(|| {
            let authority = Authority::new().expect("an authority");
            let of = |name| authority.issue(name).and_then(|keys| keys.identity());
            (of("host-a").expect("keys"), of(HOST).expect("keys"))
        });
        let here: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let hint = LinkHint::default();
        let listener = listen(kind, here, b, hint).await.expect("a listener");
        let to = listener.local_addr().expect("an address");
        let connector = connector(kind, to, HOST, a, hint, None).expect("a connector");
        (connector, listener)
    }
}

type Wrap = Arc<dyn Fn(Arc<dyn Machine>) -> Arc<dyn Machine> + Send + Sync>;

/// A migration as it is to be.
#[derive(Clone)]
pub struct Plan {
    /// The transport.
    pub over: Over,
    /// The codec.
    pub codec: CodecChoice,
    /// Page streams.
    pub streams: u16,
    /// For both sides.
    pub silence: Duration,
    /// For the destination.
    pub linger: Duration,
    /// For the source.
    pub reconnect_for: Duration,
    /// What becomes of messages and frames.
    pub script: Arc<Script>,
    /// The source's journal and the destination's.
    pub journals: [Arc<dyn Journal>; 2],
    /// What is done to the machine that the destination makes.
    pub wrap: Wrap,
    /// The disk of a machine that has one.
    pub disk: Option<MemoryDisk>,
    /// The span that the source tells the destination of.
    pub trace: Option<fn(MigrationId) -> TraceParent>,
}

fn opener(disk: Option<MemoryDisk>) -> OpenDisk {
    Arc::new(move |spec, _| {
        let refused = |why: &str| OpenError {
            disk: spec.source.to_string(),
            why: why.to_owned(),
        };
        let disk = disk.as_ref().ok_or_else(|| refused("there is none"))?;
        let session = disk.open().map_err(|e| refused(&e.to_string()))?;
        Ok(Box::new(session) as Box<dyn BlockBackend>)
    })
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            over: Over::Memory,
            codec: CodecChoice::Fixed(CodecSpec::Lz4),
            streams: 2,
            silence: Duration::from_secs(10),
            linger: Duration::from_millis(500),
            reconnect_for: Duration::from_secs(20),
            script: Script::clean(),
            journals: [
                Arc::new(MemoryJournal::default()),
                Arc::new(MemoryJournal::default()),
            ],
            wrap: Arc::new(|machine| machine),
            disk: None,
            trace: None,
        }
    }
}

impl Plan {
    /// Everything as by default, and this script.
    #[must_use]
    pub fn scripted(script: &Arc<Script>) -> Self {
        Self {
            script: script.clone(),
            ..Self::default()
        }
    }
}

#[derive(Debug, Default)]
struct Made {
    machines: Vec<Weak<dyn Machine>>,
    events: Option<Events>,
}

/// A migration under way.
#[derive(Debug)]
pub struct Under {
    /// The source's side.
    pub source: SourceHandle,
    /// The destination's side.
    pub destination: DestinationHandle,
    /// The source's connector, without the script: strangers use it too.
    pub connector: Arc<dyn Connector>,
    /// The secret of this migration.
    pub token: Token,
    /// Its name.
    pub migration: MigrationId,
    script: Arc<Script>,
    made: Arc<Mutex<Made>>,
}

/// How it ended, on both sides.
#[derive(Debug)]
pub struct Ended {
    /// The source's end.
    pub source: SourceEnd,
    /// The destination's.
    pub destination: DestinationEnd,
    /// The guest at the destination, if it is there.
    pub arrived: Option<Guest>,
    /// The destination never heard of the source, and was told to end.
    pub unheard: bool,
    made: Arc<Mutex<Made>>,
}

fn fresh() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bits = [0x5a; 16];
    bits[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    bits
}

fn maker(made: Arc<Mutex<Made>>, wrap: Wrap, opener: OpenDisk) -> MakeMachine {
    Arc::new(move |shape: &VmShape| {
        let (events, said) = sink();
        let machine = vmferry_machine::create_with(&config_of(shape)?, events, Role::Heir, &opener)
            .map_err(|e| e.to_string())?;
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        made.machines.push(Arc::downgrade(&machine));
        made.events = Some(said);
        Ok(wrap(machine))
    })
}

/// Starts the destination, then the source. The source has done nothing yet when this returns.
///
/// # Panics
/// Where the source cannot be started.
pub async fn begin(guest: &Guest, plan: &Plan) -> Under {
    begin_after(guest, plan, async |_, _, _| {}).await
}

/// The same, with something that happens before the source is there.
///
/// # Panics
/// Where the source cannot be started.
pub async fn begin_after(
    guest: &Guest,
    plan: &Plan,
    first: impl AsyncFnOnce(Arc<dyn Connector>, Token, MigrationId),
) -> Under {
    let under = try_begin(guest, plan, first).await;
    under.expect("a migration can begin")
}

/// The same, where the source may refuse.
///
/// # Errors
/// Why it does.
pub async fn try_begin(
    guest: &Guest,
    plan: &Plan,
    first: impl AsyncFnOnce(Arc<dyn Connector>, Token, MigrationId),
) -> Result<Under, String> {
    let (connector, listener) = plan.over.pair().await;
    let (migration, token) = (MigrationId(fresh()), Token::new(fresh()));
    let made = Arc::new(Mutex::new(Made::default()));
    let [source_journal, destination_journal] = plan.journals.clone();
    let destination = destination::start(
        listener,
        maker(made.clone(), plan.wrap.clone(), opener(plan.disk.clone())),
        destination_journal,
        DestinationOptions {
            silence: plan.silence,
            linger: plan.linger,
            ..DestinationOptions::new(token)
        },
    );
    first(connector.clone(), token, migration).await;
    let tracker = auto::pick(match guest.machine.config().kind {
        MachineKind::Kvm => MachineSort::Kvm,
        MachineKind::Process => MachineSort::Process,
    })
    .kind;
    let options = SourceOptions {
        streams: plan.streams,
        codec: plan.codec,
        // On a busy machine the pause may be long; that is not what these tests are about.
        limits: Limits {
            max_blackout: Duration::from_secs(20),
            ..Limits::default()
        },
        silence: plan.silence,
        reconnect_for: plan.reconnect_for,
        trace: plan.trace.map(|trace| trace(migration)),
        ..SourceOptions::new(migration, token, tracker)
    };
    let faulty = FaultyConnector::over(connector.clone(), plan.script.clone());
    let source = source::start(guest.machine.clone(), faulty, source_journal, options);
    if source.is_err() {
        destination.operator().cancel();
    }
    Ok(Under {
        source: source?,
        destination,
        connector,
        token,
        migration,
        script: plan.script.clone(),
        made,
    })
}

impl Under {
    /// Waits until the guest runs at the destination, whatever is still to be done.
    ///
    /// # Panics
    /// Where it does not come.
    pub async fn arrive(&mut self) -> Guest {
        let arrived = guard("the guest's arrival", self.destination.arrived.recv()).await;
        let Arrived { machine, .. } = arrived.expect("it arrives");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        Guest {
            machine,
            events: made.events.take().expect("the machine was made here"),
        }
    }

    /// Waits for both ends. A destination that cannot have heard of an aborted source would wait
    /// for one: it is told to end.
    ///
    /// # Panics
    /// Where one side does not end.
    pub async fn end(self) -> Ended {
        let Self {
            source,
            mut destination,
            script,
            made,
            connector,
            ..
        } = self;
        let source = guard("the source", source.ended)
            .await
            .expect("a source's end");
        drop(connector);
        // Whether the first message was lost or not: where no second or answer came, nobody knows.
        let unheard = source.outcome != Outcome::Completed && script.count(Way::Back) == 0;
        if unheard {
            destination.operator().cancel();
        }
        let end = guard("the destination", &mut destination.ended).await;
        let arrived = destination.arrived.try_recv().ok().map(|arrived| {
            let Arrived { machine, .. } = arrived;
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            Guest {
                machine,
                events: made.events.take().expect("the machine was made here"),
            }
        });
        Ended {
            source,
            destination: end.expect("a destination's end"),
            arrived,
            unheard,
            made,
        }
    }
}

impl Ended {
    /// Why the source gave up.
    #[must_use]
    pub fn why_source(&self) -> &str {
        match &self.source.outcome {
            Outcome::Completed => "",
            Outcome::Aborted { detail, .. } | Outcome::Undecided { detail } => detail,
        }
    }

    /// Why the destination has no guest.
    #[must_use]
    pub fn why_destination(&self) -> &str {
        self.destination.failure.as_deref().unwrap_or("")
    }

    /// Whether the guest was moved.
    #[must_use]
    pub fn completed(&self) -> bool {
        self.source.outcome == Outcome::Completed
    }

    /// Machines that the destination made and that still exist, the one that arrived left out.
    #[must_use]
    pub fn left_there(&self) -> usize {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = made.machines.iter().filter(|m| m.strong_count() > 0);
        alive.count() - usize::from(self.arrived.is_some())
    }
}

/// What must hold after any migration of a guest that ran: it runs at exactly one side, the right
/// one, its memory is as it must be, and both sides know why. Returns it, wherever it is.
///
/// # Panics
/// Where something does not hold.
pub async fn settle(guest: Guest, mut ended: Ended) -> Guest {
    assert_eq!(
        ended.left_there(),
        0,
        "a machine was left at the destination"
    );
    let mut here = match &ended.source.outcome {
        Outcome::Completed => {
            assert_eq!(ended.destination.failure, None);
            assert_eq!(guest.machine.state(), MachineState::Stopped);
            ended.arrived.take().expect("the guest arrived")
        }
        Outcome::Aborted { detail, .. } => {
            assert!(!detail.is_empty());
            assert!(ended.arrived.is_none(), "two guests: {detail}");
            assert!(!ended.why_destination().is_empty(), "no reason: {detail}");
            guest
        }
        Outcome::Undecided { detail } => panic!("undecided: {detail}"),
    };
    here.verify().await;
    here.look();
    here
}
