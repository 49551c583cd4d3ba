//! A journal and a machine that stand still at points, and tell what they have done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmferry_journal::{Journal, JournalError};
use vmferry_machine::MachineError;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

use super::gate::Gate;
use super::log::{Log, What};
use super::talk::Kept;
use super::{Point, Side};
use crate::decorated::{Around, Op};

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

/// Before and after records are written; settlements and completions may come in one lot.
fn points(records: &[Record]) -> Vec<[Point; 2]> {
    let has = |is: fn(&Record) -> bool| records.iter().any(is);
    match records.last() {
        Some(Record::Prepared(_)) => vec![[Point::PreparedBefore, Point::PreparedAfter]],
        Some(Record::Relinquished(_)) => vec![[Point::RelinquishBefore, Point::RelinquishAfter]],
        Some(Record::Owner(_)) => vec![[Point::OwnerBefore, Point::OwnerAfter]],
        Some(Record::Released(_)) => vec![[Point::ReleasedBefore, Point::ReleasedAfter]],
        _ => {
            let settled = has(|r| matches!(r, Record::Settled(..)));
            let completed = has(|r| matches!(r, Record::Completed(..)));
            let settled = settled.then_some([Point::SettledBefore, Point::SettledAfter]);
            let completed = completed.then_some([Point::CompletedBefore, Point::CompletedAfter]);
            settled.into_iter().chain(completed).collect()
        }
    }
}

fn kept(record: &Record) -> Kept {
    match record {
        Record::Prepared(_) => Kept::Prepared,
        Record::Relinquished(_) => Kept::Relinquished,
        Record::Owner(_) => Kept::Owner,
        Record::Released(_) => Kept::Released,
        Record::Discarded(_) => Kept::Discarded,
        // There is no operator here.
        Record::Reclaimed(_) | Record::Handed(..) | Record::Settled(..) | Record::Completed(..) => {
            Kept::Jobs
        }
    }
}

impl Journal for WatchedJournal {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        if records.iter().any(|r| matches!(r, Record::Owner(_))) {
            self.owner.store(true, Ordering::SeqCst);
        }
        let points = points(records);
        for [before, _] in &points {
            self.shared.gate.at(*before);
        }
        self.inner.append(records)?;
        if let Some(last) = records.last() {
            (self.tell)(kept(last));
        }
        for [_, after] in &points {
            self.shared.gate.at(*after);
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

/// Stands still at points around a machine's operations, and logs when its guest runs.
#[derive(Debug)]
pub(super) struct WatchedMachine(pub(super) Shared);

/// Before and after an operation.
fn points_of(op: Op) -> (Point, Option<Point>) {
    match op {
        Op::Pause => (Point::PauseBefore, Some(Point::PauseAfter)),
        Op::Save => (Point::SaveBefore, Some(Point::SaveAfter)),
        Op::Restore => (Point::RestoreBefore, Some(Point::RestoreAfter)),
        Op::Resume => (Point::ResumeBefore, Some(Point::ResumeAfter)),
        Op::Stop => (Point::StopBefore, None),
    }
}

impl Around for WatchedMachine {
    fn around(
        &self,
        op: Op,
        operation: &mut dyn FnMut() -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let Self(Shared { side, gate, log }) = self;
        // Where that is this side's.
        let at = |point: Point| {
            if point.side() == *side {
                gate.at(point);
            }
        };
        let (before, after) = points_of(op);
        at(before);
        if op == Op::Resume {
            log.add(What::Runs);
        }
        let done = operation();
        match op {
            Op::Pause | Op::Stop if done.is_ok() => log.add(What::Stands),
            Op::Resume if done.is_err() => log.add(What::Stands),
            _ => {}
        }
        after.into_iter().for_each(at);
        done
    }
}
