//! A journal and a machine that stand still at points, and tell what they have done.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmferry_journal::{Journal, JournalError};
use vmferry_machine::{Disks, Machine, MachineConfig, MachineError, MachineState, Recorder};
use vmferry_memory::GuestRam;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind};

use super::gate::Gate;
use super::log::{Log, What};
use super::talk::Kept;
use super::{Point, Side};

/// What all parts of a VM process share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) side: Side,
    pub(super) gate: Arc<Gate>,
    pub(super) log: Arc<Log>,
}

/// A journal with points.
pub(super) struct WatchedJournal {
    pub(super) inner: Arc<dyn Journal>,
    pub(super) shared: Shared,
    /// `owner` is on its way to disk, or there.
    pub(super) owner: AtomicBool,
    pub(super) tell: Box<dyn Fn(Kept) + Send + Sync>,
}

/// Before and after a record is written.
fn points(records: &[Record]) -> Option<[Point; 2]> {
    let has = |is: fn(&Record) -> bool| records.iter().any(is);
    match records.last()? {
        Record::Prepared(_) => Some([Point::PreparedBefore, Point::PreparedAfter]),
        Record::Relinquished(_) => Some([Point::RelinquishBefore, Point::RelinquishAfter]),
        Record::Owner(_) => Some([Point::OwnerBefore, Point::OwnerAfter]),
        Record::Released(_) => Some([Point::ReleasedBefore, Point::ReleasedAfter]),
        _ if has(|r| matches!(r, Record::Settled(..))) => {
            Some([Point::SettledBefore, Point::SettledAfter])
        }
        _ if has(|r| matches!(r, Record::Completed(..))) => {
            Some([Point::CompletedBefore, Point::CompletedAfter])
        }
        _ => None,
    }
}

fn kept(record: &Record) -> Kept {
    match record {
        Record::Prepared(_) => Kept::Prepared,
        Record::Relinquished(_) => Kept::Relinquished,
        Record::Owner(_) => Kept::Owner,
        Record::Released(_) => Kept::Released,
        Record::Discarded(_) => Kept::Discarded,
        Record::Handed(..) | Record::Settled(..) | Record::Completed(..) => Kept::Jobs,
    }
}

impl Journal for WatchedJournal {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        if records.iter().any(|r| matches!(r, Record::Owner(_))) {
            self.owner.store(true, Ordering::SeqCst);
        }
        let points = points(records);
        if let Some([before, _]) = points {
            self.shared.gate.at(before);
        }
        self.inner.append(records)?;
        if let Some(last) = records.last() {
            (self.tell)(kept(last));
        }
        if let Some([_, after]) = points {
            self.shared.gate.at(after);
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        self.inner.records()
    }

    fn forget(&self, migration: MigrationId) -> Result<(), JournalError> {
        self.inner.forget(migration)?;
        (self.tell)(Kept::Forgotten);
        Ok(())
    }
}

/// A machine with points, which logs when its guest runs.
pub(super) struct WatchedMachine {
    pub(super) inner: Arc<dyn Machine>,
    pub(super) shared: Shared,
}

impl fmt::Debug for WatchedMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WatchedMachine({:?})", self.inner)
    }
}

impl WatchedMachine {
    /// At `point`, where that is this side's.
    fn at(&self, point: Point) {
        if point.side() == self.shared.side {
            self.shared.gate.at(point);
        }
    }
}

impl Machine for WatchedMachine {
    fn config(&self) -> &MachineConfig {
        self.inner.config()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.inner.ram()
    }

    fn cpu_features(&self) -> Vec<String> {
        self.inner.cpu_features()
    }

    fn disks(&self) -> &Arc<Disks> {
        self.inner.disks()
    }

    fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, TrackerError> {
        self.inner.tracker(kind)
    }

    fn state(&self) -> MachineState {
        self.inner.state()
    }

    fn boot(&self) -> Result<(), MachineError> {
        self.inner.boot()
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.at(Point::ResumeBefore);
        self.shared.log.add(What::Runs);
        let resumed = self.inner.resume();
        if resumed.is_err() {
            self.shared.log.add(What::Stands);
        }
        self.at(Point::ResumeAfter);
        resumed
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.at(Point::PauseBefore);
        let paused = self.inner.pause();
        if paused.is_ok() {
            self.shared.log.add(What::Stands);
        }
        self.at(Point::PauseAfter);
        paused
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        self.at(Point::SaveBefore);
        let saved = self.inner.save();
        self.at(Point::SaveAfter);
        saved
    }

    fn restore(&self, blob: &[u8]) -> Result<(), MachineError> {
        self.at(Point::RestoreBefore);
        let restored = self.inner.restore(blob);
        self.at(Point::RestoreAfter);
        restored
    }

    fn workload(&self) -> Option<&Arc<Recorder>> {
        self.inner.workload()
    }

    fn stop(&self) {
        self.at(Point::StopBefore);
        self.inner.stop();
        self.shared.log.add(What::Stands);
    }
}
