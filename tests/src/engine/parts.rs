//! A journal and a machine that fail on demand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmferry_journal::{Journal, JournalError};
use vmferry_machine::{Disks, Machine, MachineConfig, MachineError, MachineState, Recorder};
use vmferry_memory::GuestRam;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind};

type Fails = Box<dyn Fn(usize, &Record) -> bool + Send + Sync>;

/// A journal whose disk is full for some appends.
pub struct FaultyJournal {
    inner: Arc<dyn Journal>,
    appends: AtomicUsize,
    fails: Fails,
}

impl FaultyJournal {
    /// Fails where `fails` says so of the n-th append, counted from 1.
    pub fn new(
        inner: Arc<dyn Journal>,
        fails: impl Fn(usize, &Record) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            appends: AtomicUsize::new(0),
            fails: Box::new(fails),
        })
    }

    /// Appends that were tried.
    #[must_use]
    pub fn appends(&self) -> usize {
        self.appends.load(Ordering::SeqCst)
    }
}

impl Journal for FaultyJournal {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        let nth = self.appends.fetch_add(1, Ordering::SeqCst) + 1;
        if records.last().is_some_and(|last| (self.fails)(nth, last)) {
            return Err(JournalError::Write("the disk is full".to_owned()));
        }
        self.inner.append(records)
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        self.inner.records()
    }

    fn forget(&self, migration: MigrationId) -> Result<(), JournalError> {
        self.inner.forget(migration)
    }
}

/// What can fail on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Machine::pause`].
    Pause,
    /// [`Machine::save`].
    Save,
    /// [`Machine::restore`].
    Restore,
    /// [`Machine::resume`].
    Resume,
}

/// A machine that fails to do one thing, a number of times.
pub struct FaultyMachine {
    inner: Arc<dyn Machine>,
    op: Op,
    left: AtomicUsize,
}

impl fmt::Debug for FaultyMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyMachine({:?}, {:?})", self.op, self.inner)
    }
}

impl FaultyMachine {
    /// Fails to do `op` for the first `times`.
    pub fn over(inner: Arc<dyn Machine>, op: Op, times: usize) -> Arc<dyn Machine> {
        Arc::new(Self {
            inner,
            op,
            left: AtomicUsize::new(times),
        })
    }

    fn may(&self, op: Op) -> Result<(), MachineError> {
        let one_less = |n: usize| n.checked_sub(1);
        if op == self.op
            && self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_ok()
        {
            return Err(MachineError::Threads(format!("{op:?} fails on demand")));
        }
        Ok(())
    }
}

impl Machine for FaultyMachine {
    fn config(&self) -> &MachineConfig {
        self.inner.config()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.inner.ram()
    }

    fn cpu_features(&self) -> Vec<String> {
        self.inner.cpu_features()
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
        self.may(Op::Resume)?;
        self.inner.resume()
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.may(Op::Pause)?;
        self.inner.pause()
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        self.may(Op::Save)?;
        self.inner.save()
    }

    fn restore(&self, blob: &[u8]) -> Result<(), MachineError> {
        self.may(Op::Restore)?;
        self.inner.restore(blob)
    }

    fn disks(&self) -> &Arc<Disks> {
        self.inner.disks()
    }

    fn workload(&self) -> Option<&Arc<Recorder>> {
        self.inner.workload()
    }

    fn stop(&self) {
        self.inner.stop();
    }
}
