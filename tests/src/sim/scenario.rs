//! What a simulated migration is like, and what goes wrong in it. Plain data.

use std::time::Duration;

use vmferry_protocol::message::{RunState, VmShape};
use vmferry_protocol::policy::Limits;
use vmferry_protocol::{PageRange, RamLayout};

use super::guest::Writes;
use super::link::{Direction, Link};
use super::storage::SimJob;

/// A side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the guest is.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }
}

/// How long the machines take, in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// A harvest.
    pub harvest: Duration,
    /// From the protection of a chunk to the copy of its pages.
    pub read: Duration,
    /// A chunk into RAM.
    pub apply: Duration,
    /// Stopping the vCPUs.
    pub pause: Duration,
    /// Saving state; the destination takes as long to set it.
    pub state: Duration,
    /// A record to disk.
    pub persist: Duration,
    /// Starting the vCPUs, making the machine, cancelling IO.
    pub other: Duration,
}

impl Default for Costs {
    fn default() -> Self {
        let us = Duration::from_micros;
        Self {
            harvest: us(50),
            read: us(80),
            apply: us(20),
            pause: us(200),
            state: us(500),
            persist: us(1500),
            other: us(100),
        }
    }
}

/// When something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// After this many steps of the simulation.
    Step(u64),
    /// With this control message, from 0, which is lost.
    Message(Direction, u64),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutKind {
    /// Both sides are told at once.
    Reset,
    /// Nobody is told.
    BlackHole,
}

/// A cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// When.
    pub at: Trigger,
    /// How.
    pub kind: CutKind,
    /// How many attempts to connect again fail; none: all.
    pub refused: Option<u32>,
}

/// What a disk does to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Fails; the record is not there.
    Fails,
    /// Fails, but the record is there.
    FailsAfterWriting,
}

/// A driver that does not keep the contract. The checks must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Tells the core that a record is stored before it is.
    TellsBeforeStored,
    /// Copies pages before it protects them.
    ReadsBeforeProtecting,
    /// Clears what it harvests, and loses it when it harvests again.
    ForgetsFinalHarvest,
    /// Says that a chunk is in RAM, and drops it.
    AcknowledgesUnapplied,
    /// Lets the guest run when it is only prepared.
    ResumesWhenPrepared,
    /// Says that the guest is paused while it runs.
    DoesNotPause,
    /// The source lets its guest run on when the connection breaks, whatever the core says.
    ResumesOnLoss,
    /// The destination takes unsettled storage jobs for cancelled ones.
    ForgetsFences,
    /// The destination lifts its fences before anybody has said that it may.
    SettlesAtOnce,
}

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The connection breaks.
    pub cut: Option<Cut>,
    /// A process is killed after so many steps.
    pub kill: Option<(Side, u64)>,
    /// An operator cancels after so many steps.
    pub cancel: Option<(Side, u64)>,
    /// The n-th record (from 0) of a side meets this.
    pub disk: Option<(Side, u64, DiskFault)>,
    /// The n-th control message of a direction is delivered twice.
    pub duplicate: Option<(Direction, u64)>,
    /// The n-th step of a machine (from 0) fails, at that side.
    pub machine: Option<(Side, u64)>,
    /// A driver that is wrong.
    pub bug: Option<PlantedBug>,
}

/// A migration.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// RAM.
    pub layout: RamLayout,
    /// Pages that exist at the start, counted from the bottom.
    pub touched: u64,
    /// How the guest writes.
    pub writes: Writes,
    /// Pages that a write makes perhaps dirty together; from 2 on, contents are compared before
    /// they are sent.
    pub group_pages: u64,
    /// Whether the tracker can slow writers down.
    pub can_throttle: bool,
    /// What a notification costs the guest.
    pub notification: Duration,
    /// The guest runs in slices of this length.
    pub slice: Duration,
    /// Storage requests in flight at the pause.
    pub jobs: Vec<SimJob>,
    /// Running or paused.
    pub run_state: RunState,
    /// Page streams.
    pub streams: u16,
    /// Pages on their way at once.
    pub window_pages: u64,
    /// The operator's limits.
    pub limits: Limits,
    /// The link.
    pub link: Link,
    /// The machines.
    pub costs: Costs,
    /// Bytes of vCPU and device state.
    pub state_bytes: usize,
    /// Wire bytes per page with content.
    pub page_bytes: u64,
    /// Whether chunks pass through the real wire format.
    pub encode: bool,
    /// Longest silence of a connection.
    pub silence: Duration,
    /// Longest time from the pause to the handover.
    pub pause_deadline: Duration,
    /// How long the source tries to reach the destination after it has relinquished.
    pub reconnect_for: Duration,
    /// For all that is random.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Faults,
    /// If it was aborted, it is tried again at once, on the same guest, with nothing going wrong.
    pub again: bool,
}

impl Default for Scenario {
    /// A guest of 8 MiB in two regions that writes a little, on a link of 1 Gbyte/s.
    fn default() -> Self {
        let regions = vec![PageRange::new(0, 1500), PageRange::new(4096, 548)];
        let layout = RamLayout::try_from(regions).expect("two regions apart from each other");
        Self {
            layout,
            touched: 1200,
            writes: Writes::Uniform { rate: 20_000 },
            group_pages: 1,
            can_throttle: true,
            notification: Duration::from_micros(20),
            slice: Duration::from_micros(100),
            jobs: Vec::new(),
            run_state: RunState::Running,
            streams: 4,
            window_pages: 512,
            limits: Limits::default(),
            link: Link {
                latency: Duration::from_micros(100),
                bandwidth: 1_000_000_000,
            },
            costs: Costs::default(),
            state_bytes: 10_000,
            page_bytes: 4096,
            encode: true,
            silence: Duration::from_secs(10),
            pause_deadline: Duration::from_secs(5),
            reconnect_for: Duration::from_secs(60),
            seed: 1,
            faults: Faults::default(),
            again: false,
        }
    }
}

impl Scenario {
    pub(super) fn shape(&self) -> VmShape {
        VmShape {
            ram: self.layout.clone(),
            vcpus: 2,
            cpu_features: vec!["sse2".to_owned()],
            config: b"machine".to_vec(),
            run_state: self.run_state,
        }
    }
}
