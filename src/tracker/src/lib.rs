//! Dirty trackers: which pages may have been written since they were last read.
//!
//! A tracker answers one question for the migration engine, pass by pass. It neither reads pages
//! nor decides what to send. Three calls carry it, in this order:
//!
//! 1. [`DirtyTracker::start`]: from here on no write is missed; every page counts as written.
//! 2. [`DirtyTracker::harvest`]: the populated pages that may have been written since they were
//!    last protected. Harvesting clears nothing: a page stays in the answer until it is protected.
//! 3. [`DirtyTracker::protect`], just before the pages are read: a write after it shows up in the
//!    next harvest. So a harvest that is thrown away loses nothing.

pub mod auto;
mod bits;
mod kvm_log;
mod kvm_ring;
mod slots;
mod sys;
mod wp_async;
pub mod wp_group;

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use kvm_ioctls::VmFd;
use thiserror::Error;
use vmferry_memory::{GuestRam, MemoryError};
use vmferry_protocol::PageRange;

pub use kvm_log::KvmLog;
pub use kvm_ring::{DirtyRings, EXIT_RING_FULL, KvmRing, RING_ENTRIES, RingsEnabled};
pub use wp_async::WpAsync;
pub use wp_group::WpGroup;
pub use wp_group::policy::GroupSize;

/// The trackers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackerKind {
    /// KVM's dirty log, bitmap per memory slot, cleared by range.
    KvmLog,
    /// KVM's dirty rings, a list of pages for each vCPU.
    KvmRing,
    /// userfaultfd write protection that the kernel lifts by itself, read by PAGEMAP_SCAN.
    WpAsync,
    /// userfaultfd write protection of groups of pages.
    WpGroup,
}

impl TrackerKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::WpGroup, Self::KvmLog, Self::KvmRing, Self::WpAsync];

    /// The name used on the command line, in the report and in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KvmLog => "kvm-log",
            Self::KvmRing => "kvm-ring",
            Self::WpAsync => "wp-async",
            Self::WpGroup => "wp-group",
        }
    }
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TrackerKind {
    type Err = UnknownTracker;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|k| k.name() == text)
            .ok_or_else(|| UnknownTracker(text.to_owned()))
    }
}

/// A tracker name that does not exist.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no tracker '{0}'; choose one of: wp-group, kvm-log, kvm-ring, wp-async")]
pub struct UnknownTracker(pub String);

/// Why tracking is not possible or failed.
#[derive(Debug, Error)]
pub enum TrackerError {
    /// The kernel refused an operation of the tracker.
    #[error("tracker {kind}: {what} failed")]
    Kernel {
        /// The tracker.
        kind: TrackerKind,
        /// What was asked of the kernel.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The machine is not a KVM machine.
    #[error("tracker {0} needs a KVM machine; use wp-group for a process machine")]
    NeedsKvm(TrackerKind),
    /// The machine has dirty rings in place of a dirty log.
    #[error(
        "tracker kvm-log cannot be had on a machine with dirty rings; use kvm-ring or wp-group"
    )]
    HasRings,
    /// The machine has no dirty rings, and a machine that exists cannot get them.
    #[error(
        "tracker kvm-ring needs a machine that was made with dirty rings; use kvm-log or wp-group"
    )]
    NoRings,
    /// Guest RAM could not be looked at.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Called out of order.
    #[error("tracker used before it was started")]
    NotStarted,
}

/// What one harvest cost the guest, as far as the tracker can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HarvestStats {
    /// Pages in the answer.
    pub pages: u64,
    /// Write notifications (faults) that the guest has paid for since the last harvest: protected
    /// pages that were written. Each counts once, however often it is harvested.
    pub notifications: u64,
    /// How long writers waited for an answer to them, where this process answers them.
    pub stall: Duration,
}

/// What is known of the passes so far when another begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassFacts {
    /// The pass that begins, from 1.
    pub pass: u32,
    /// Pages to read in it.
    pub pages: u64,
    /// Pages that were read in the last pass.
    pub read: u64,
    /// Those of them that had changed.
    pub changed: u64,
    /// Processor time to read and compare a page, by the threads that do so at once.
    pub per_page: Duration,
    /// What reading may take while the guest is paused.
    pub budget: Duration,
}

/// What answering write notifications cost the guest since the tracker was started; zero where the
/// kernel answers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotificationCosts {
    /// Notifications answered.
    pub notifications: u64,
    /// Pages made writable by them.
    pub pages: u64,
    /// From reading a notification until its writer could go on, summed.
    pub stall: Duration,
    /// The longest of these.
    pub longest: Duration,
    /// How long writers were made to wait by [`DirtyTracker::throttle`], on top of that.
    pub throttled: Duration,
}

/// How much writers are slowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Pages that all writers together may make writable in a second.
    pub pages_per_second: u64,
    /// Most of a writer's time that it is made to wait, in per cent; 100: as much as it takes.
    pub most_pct: u8,
}

/// Which pages may have been written; see the crate's documentation for the order of calls.
///
/// `start`, `harvest` and `stop` are called by one owner; `protect` by any number of threads at
/// once, for ranges that do not overlap.
pub trait DirtyTracker: Send + Sync + fmt::Debug {
    /// Which tracker this is.
    fn kind(&self) -> TrackerKind;

    /// Begins tracking; all RAM counts as written. May be called again after [`Self::stop`].
    ///
    /// # Errors
    /// [`TrackerError::Kernel`]; tracking is off then.
    fn start(&self) -> Result<(), TrackerError>;

    /// Calls `found` for every run of populated pages, ascending, that may have been written
    /// since they were protected.
    ///
    /// # Errors
    /// [`TrackerError`]; nothing is lost then: the next harvest has it all.
    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError>;

    /// Arms the pages of `range` (within one RAM region): writes from now on are in the next
    /// harvest. May arm nothing else.
    ///
    /// # Errors
    /// [`TrackerError`]; the pages then still count as written.
    fn protect(&self, range: PageRange) -> Result<(), TrackerError>;

    /// A pass begins, after its harvest and before any page of it is protected. For trackers that
    /// adapt to how it goes.
    fn next_pass(&self, _facts: &PassFacts) {}

    /// Whether many harvested pages will not have changed, so that it pays to compare each with
    /// what was sent last.
    fn compares_content(&self) -> bool {
        false
    }

    /// How large groups of pages are, for trackers that have groups; before the start.
    fn set_group_size(&self, _size: GroupSize) {}

    /// Pages that are protected together from here on, whichever of them is to be; 1 where each is
    /// by itself.
    fn group_pages(&self) -> u64 {
        1
    }

    /// Whether [`Self::throttle`] has an effect.
    fn can_throttle(&self) -> bool {
        false
    }

    /// Slows writers down from now on, or (none) lets all go on at once. Readers are not
    /// touched, nor writers to pages that are not protected.
    fn throttle(&self, _throttle: Option<Throttle>) {}

    /// What notifications have cost since the last start.
    fn costs(&self) -> NotificationCosts {
        NotificationCosts::default()
    }

    /// Ends tracking and takes all protection off. Idempotent.
    fn stop(&self);
}

/// KVM's side of a machine.
#[derive(Clone, Debug)]
pub struct KvmSide {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its dirty rings, where it was made with them.
    pub rings: Option<Arc<DirtyRings>>,
}

/// Makes the tracker `kind` for `ram`; `kvm` is the machine's, if it is a KVM machine.
///
/// # Errors
/// [`TrackerError`]: the machine is not one that can have it, or the kernel lacks what it needs.
pub fn make(
    kind: TrackerKind,
    ram: Arc<GuestRam>,
    kvm: Option<KvmSide>,
) -> Result<Box<dyn DirtyTracker>, TrackerError> {
    match kind {
        TrackerKind::KvmLog => {
            let kvm = kvm.ok_or(TrackerError::NeedsKvm(kind))?;
            if kvm.rings.is_some() {
                return Err(TrackerError::HasRings);
            }
            Ok(Box::new(KvmLog::new(kvm.vm, ram)?))
        }
        TrackerKind::KvmRing => {
            let kvm = kvm.ok_or(TrackerError::NeedsKvm(kind))?;
            let rings = kvm.rings.ok_or(TrackerError::NoRings)?;
            Ok(Box::new(KvmRing::new(rings, ram)))
        }
        TrackerKind::WpAsync => Ok(Box::new(WpAsync::new(ram)?)),
        TrackerKind::WpGroup => Ok(Box::new(WpGroup::new(ram, GroupSize::Auto)?)),
    }
}
