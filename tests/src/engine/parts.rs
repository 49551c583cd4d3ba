//! A journal and a machine that fail on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmferry_journal::{Journal, JournalError};
use vmferry_machine::{Machine, MachineError};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

use crate::decorated::{Around, Decorated, Op};

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

/// What makes a machine fail to do one thing, a number of times.
#[derive(Debug)]
pub struct FaultyMachine {
    op: Op,
    left: AtomicUsize,
}

impl FaultyMachine {
    /// `inner` that fails to do `op` for the first `times`.
    pub fn over(inner: Arc<dyn Machine>, op: Op, times: usize) -> Arc<dyn Machine> {
        let left = AtomicUsize::new(times);
        let around = Self { op, left };
        Arc::new(Decorated { inner, around })
    }
}

impl Around for FaultyMachine {
    fn around(
        &self,
        op: Op,
        operation: &mut dyn FnMut() -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let one_less = |n: usize| n.checked_sub(1);
        if op == self.op
            && self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_ok()
        {
            return Err(MachineError::Threads(format!("{op:?} fails on demand")));
        }
        operation()
    }
}
