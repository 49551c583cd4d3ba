//! A machine is moved away: [`start`] and the `Migration` actor, which owns the protocol core.
//!
//! The machine runs on while it is moved. However it ends, the guest is in one of three places:
//! running here as before ([`Outcome::Aborted`]), running at the destination, the machine here
//! stopped ([`Outcome::Completed`]), or paused here until somebody has found out whether it runs
//! there ([`Outcome::Undecided`]).

mod actor;
mod summary;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Message};
use tokio::sync::{oneshot, watch};
use vmferry_codecs::CodecChoice;
use vmferry_journal::Journal;
use vmferry_machine::{Machine, MachineState};
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message::{RunState, VmShape};
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::{Outcome, Progress, SourceEvent};
use vmferry_protocol::storage::{JobKey, Settlement};
use vmferry_protocol::trace::TraceParent;
use vmferry_protocol::{PageRange, RamLayout};
use vmferry_tracker::{GroupSize, NotificationCosts, TrackerKind};
use vmferry_transports::{Connector, MAX_STREAMS};

use crate::Budget;
use crate::report::{MigrationReport, TrackerChoice};
use actor::{AskUnconfirmed, Cancel, Migration};

/// How a machine is to be moved.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The migration's name; random.
    pub migration: MigrationId,
    /// The destination's one-time secret.
    pub token: Token,
    /// Page streams, 1 to [`MAX_STREAMS`].
    pub streams: u16,
    /// How pages are compressed.
    pub codec: CodecChoice,
    /// Most bytes of earlier versions of pages that are kept, to send differences.
    pub delta_cache_bytes: u64,
    /// How changed pages are found.
    pub tracker: TrackerKind,
    /// Why so, for the report, where nobody said how.
    pub tracker_choice: Option<TrackerChoice>,
    /// What a write notification costs the guest here, for a tracker that cannot tell.
    pub notification_cost: Option<Duration>,
    /// Size of groups, where the tracker has groups.
    pub group: GroupSize,
    /// The operator's limits.
    pub limits: Limits,
    /// Compressor threads; how many of them work follows idle processors.
    pub compressors: usize,
    /// What the compressors of all migrations of this host share.
    pub budget: Option<Budget>,
    /// Most bytes of pages on their way at once: this bounds the memory of both sides.
    pub window_bytes: u64,
    /// The connection counts as lost after this silence.
    pub silence: Duration,
    /// How long to try to reach the destination again once the right to run was given up.
    pub reconnect_for: Duration,
    /// The migration's span, for the destination, where somebody traces it.
    pub trace: Option<TraceParent>,
}

/// Default of [`SourceOptions::window_bytes`]: 16 MiB, what 10 Gbit/s carry in 13 ms.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// Default of [`SourceOptions::delta_cache_bytes`].
pub const DELTA_CACHE_BYTES: u64 = 64 << 20;
/// Default of [`SourceOptions::silence`], and the destination's.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Default of [`SourceOptions::reconnect_for`], and how long the destination stays reachable.
pub const RECONNECT_FOR: Duration = Duration::from_secs(60);

impl SourceOptions {
    /// Defaults for a machine of that kind.
    #[must_use]
    pub fn new(migration: MigrationId, token: Token, tracker: TrackerKind) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            migration,
            token,
            streams: 2,
            codec: CodecChoice::Auto,
            delta_cache_bytes: DELTA_CACHE_BYTES,
            tracker,
            tracker_choice: None,
            notification_cost: None,
            group: GroupSize::Auto,
            limits: Limits::default(),
            compressors: cores.min(4),
            budget: None,
            window_bytes: WINDOW_BYTES,
            silence: SILENCE,
            reconnect_for: RECONNECT_FOR,
            trace: None,
        }
    }
}

/// How a migration ended.
#[derive(Debug)]
pub struct SourceEnd {
    /// Where the guest is.
    pub outcome: Outcome,
    /// Everything counted; the guest's part is empty.
    pub report: MigrationReport,
    /// When it began, in nanoseconds of CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When the pause began.
    pub pause_ns: Option<u64>,
}

/// How a migration is getting on, and what it has cost the guest so far.
#[derive(Clone, Debug)]
pub struct Live {
    /// What the core knows.
    pub progress: Progress,
    /// Notifications, where this process answers them.
    pub costs: NotificationCosts,
    /// How long vCPU threads have waited for a processor since it began.
    pub run_delay: Duration,
}

/// A migration under way.
#[derive(Debug)]
pub struct SourceHandle {
    /// How it is getting on; changes several times a second.
    pub progress: watch::Receiver<Option<Live>>,
    /// Its end, when all is closed.
    pub ended: oneshot::Receiver<SourceEnd>,
    addr: Addr<Migration>,
}

/// An operator's hand on a migration.
#[derive(Clone, Debug)]
pub struct SourceOperator(Addr<Migration>);

impl SourceOperator {
    /// Storage jobs that have ended here and of which the destination has not confirmed that it
    /// knows; none where the migration is over.
    pub async fn unconfirmed(&self) -> Vec<Settlement> {
        self.0.send(AskUnconfirmed).await.unwrap_or_default()
    }

    /// It has confirmed these by another way than the control stream.
    pub fn settled_there(&self, keys: Vec<JobKey>) {
        self.0.do_send(Told(SourceEvent::SettledThere(keys)));
    }

    /// Cancels, if that is still possible.
    pub fn cancel(&self) {
        self.0.do_send(Cancel);
    }
}

impl SourceHandle {
    /// What can cancel it, and more.
    #[must_use]
    pub fn operator(&self) -> SourceOperator {
        SourceOperator(self.addr.clone())
    }
}

/// An event for the core.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Told(pub(crate) SourceEvent);

/// Where a machine's RAM lies, as the core takes it.
///
/// # Errors
/// In words; not for RAM made by this project.
pub fn layout_of(machine: &dyn Machine) -> Result<RamLayout, String> {
    let regions: Vec<PageRange> = machine.ram().regions().iter().map(|r| r.range).collect();
    RamLayout::try_from(regions).map_err(|e| e.to_string())
}

fn shape_of(machine: &dyn Machine) -> Result<VmShape, String> {
    let run_state = match machine.state() {
        MachineState::Running => RunState::Running,
        MachineState::Paused => RunState::Paused,
        other => return Err(format!("the machine cannot be moved: it is {other:?}")),
    };
    Ok(VmShape {
        ram: layout_of(machine)?,
        vcpus: machine.config().vcpus,
        cpu_features: machine.cpu_features(),
        config: postcard::to_stdvec(machine.config()).map_err(|e| e.to_string())?,
        run_state,
    })
}

/// Begins to move `machine` to where `connector` leads. Inside an actix system with a tokio
/// runtime of several threads.
///
/// # Errors
/// What is wrong, in words; nothing has happened then. Disks that cannot be used from another host
/// are among it, and disks with jobs of a former owner that are not settled: who owns what would
/// be known to nobody.
pub fn start(
    machine: Arc<dyn Machine>,
    connector: Arc<dyn Connector>,
    journal: Arc<dyn Journal>,
    options: SourceOptions,
) -> Result<SourceHandle, String> {
    if options.streams == 0 || options.streams > MAX_STREAMS {
        return Err(format!(
            "{} page streams: give 1 to {MAX_STREAMS}",
            options.streams
        ));
    }
    let shape = shape_of(&*machine)?;
    machine.disks().may_move()?;
    let tracker = machine
        .tracker(options.tracker)
        .map_err(|e| vmferry_protocol::errors::chain(&e))?;
    tracker.set_group_size(options.group);
    let (progress_sender, progress) = watch::channel(None);
    let (end_sender, ended) = oneshot::channel();
    let migration = Migration::new(
        machine,
        connector,
        journal,
        tracker.into(),
        shape,
        options,
        progress_sender,
        end_sender,
    )?;
    let addr = migration.start();
    Ok(SourceHandle {
        progress,
        ended,
        addr,
    })
}
