//! Measures what a notification costs: a writer rewrites pages of spare memory that a tracker has
//! just protected, and once more when they are not. The difference is what it lost.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_memory::GuestRam;
use vmferry_protocol::errors::chain;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::guest::TryGuest;
use super::{Cost, GROUP, MachineSort, Measured, Sweep};
use crate::{DirtyTracker, TrackerError, TrackerKind, make};

/// Groups of pages that the memory has. The first is the guest's own.
const GROUPS: u64 = 8;
/// All of a group; a part of it, where that takes long already; and one page of every group.
const DENSE: Sweep = Sweep {
    first: GROUP,
    stride: 1,
    count: GROUP,
};
const PART: Sweep = Sweep { count: 32, ..DENSE };
const SPARSE: Sweep = Sweep {
    first: GROUP + 100,
    stride: GROUP,
    count: GROUPS - 1,
};
/// A part of a group that takes longer stands for all of it.
const LONG: Duration = Duration::from_micros(300);
/// Rounds of which the best count: whatever else the host does only adds to them.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=5;
/// What the rounds of one figure may take; then no more than the fewest are done.
const BUDGET: Duration = Duration::from_millis(3);
/// Entries of a scratch guest's ring: more than it fills.
const ENTRIES: u32 = 4096;

enum Writer {
    /// This thread.
    Native(Arc<GuestRam>),
    Guest(TryGuest),
}

impl Writer {
    fn write(&mut self, sweep: Sweep, value: u8) -> io::Result<()> {
        match self {
            Self::Guest(guest) => guest.write(sweep, value),
            Self::Native(ram) => write(ram, sweep, value),
        }
    }
}

fn write(ram: &GuestRam, sweep: Sweep, value: u8) -> io::Result<()> {
    for page in sweep.pages() {
        let at = ram.hva(PageRange::new(page, 1)).map_err(io::Error::other)?;
        // SAFETY: the page is mapped for as long as `ram` lives, and only guests refer to it.
        unsafe { std::ptr::write_volatile(at as *mut u8, value) };
    }
    Ok(())
}

/// What each tracker that a machine of that sort may have costs here.
pub(super) fn all(sort: MachineSort) -> Vec<Measured> {
    let kinds = sort.trackers();
    let no = |why: &dyn std::fmt::Display| {
        let failed = |&kind| Measured {
            kind,
            cost: Err(why.to_string()),
        };
        kinds.iter().map(failed).collect()
    };
    let ram = match GuestRam::new(GROUPS * GROUP * PAGE_SIZE) {
        Ok(ram) => Arc::new(ram),
        Err(error) => return no(&error),
    };
    let everywhere = Sweep {
        first: 0,
        stride: 1,
        count: GROUPS * GROUP,
    };
    let rings = (sort == MachineSort::KvmWithRings).then_some(ENTRIES);
    let made = write(&ram, everywhere, 1).and_then(|()| match sort {
        MachineSort::Process => Ok(Writer::Native(ram.clone())),
        _ => TryGuest::new(ram.clone(), rings).map(Writer::Guest),
    });
    let mut writer = match made {
        Ok(writer) => writer,
        Err(error) => return no(&error),
    };
    let measure = |&kind| Measured {
        kind,
        cost: one(kind, &ram, &mut writer).map_err(|e| chain(&*e)),
    };
    kinds.iter().map(measure).collect()
}

type Failure = Box<dyn std::error::Error>;

fn one(kind: TrackerKind, ram: &Arc<GuestRam>, writer: &mut Writer) -> Result<Cost, Failure> {
    let kvm = match writer {
        Writer::Guest(guest) => Some(guest.kvm()),
        Writer::Native(_) => None,
    };
    let tracker = make(kind, ram.clone(), kvm)?;
    writer.write(DENSE, 0)?;
    writer.write(SPARSE, 0)?;
    tracker.start()?;
    let mut try_it = |sweep| round(&*tracker, writer, sweep);
    // A first time is also what fills caches of all sorts: it does not count.
    try_it(PART)?;
    // Groups are notified once, so that a part of one says nothing of the rest.
    let long = kind != TrackerKind::WpGroup && try_it(PART)?.protected > LONG;
    Ok(Cost {
        dense_ns: lost(if long { PART } else { DENSE }, &mut try_it)?,
        sparse_ns: lost(SPARSE, &mut try_it)?,
    })
}

/// How long the writer took.
struct Round {
    protected: Duration,
    free: Duration,
}

/// Nanoseconds a page that the writer loses, by the best of a few rounds.
fn lost(
    sweep: Sweep,
    try_it: &mut dyn FnMut(Sweep) -> Result<Round, Failure>,
) -> Result<f64, Failure> {
    let until = Instant::now() + BUDGET;
    let mut best = try_it(sweep)?;
    for done in 1..*ROUNDS.end() {
        if done >= *ROUNDS.start() && Instant::now() > until {
            break;
        }
        let next = try_it(sweep)?;
        best.protected = best.protected.min(next.protected);
        best.free = best.free.min(next.free);
    }
    let lost = best.protected.saturating_sub(best.free);
    let lost = lost.max(Duration::from_nanos(1));
    Ok(lost.as_nanos() as f64 / sweep.count as f64)
}

/// Has `writer` write pages that are protected, as a migration would, and the same once more.
fn round(tracker: &dyn DirtyTracker, writer: &mut Writer, sweep: Sweep) -> Result<Round, Failure> {
    tracker.harvest(&mut |_| {})?;
    protect(tracker, sweep)?;
    let mut timed = || -> io::Result<Duration> {
        let began = Instant::now();
        writer.write(sweep, 1)?;
        Ok(began.elapsed())
    };
    Ok(Round {
        protected: timed()?,
        free: timed()?,
    })
}

fn protect(tracker: &dyn DirtyTracker, sweep: Sweep) -> Result<(), TrackerError> {
    if sweep.stride == 1 {
        return tracker.protect(PageRange::new(sweep.first, sweep.count));
    }
    let mut pages = sweep.pages();
    pages.try_for_each(|page| tracker.protect(PageRange::new(page, 1)))
}
