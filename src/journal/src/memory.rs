//! A journal in memory, for tests: durable until the process ends, and failing on demand.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

use crate::{Journal, JournalError};

/// A journal that forgets everything at its end.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    failing: bool,
}

impl MemoryJournal {
    /// From now on, every write fails, or none.
    pub fn set_failing(&self, failing: bool) {
        self.inner().failing = failing;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut inner = self.inner();
        if inner.failing {
            return Err(JournalError::Write("the disk is full".to_owned()));
        }
        inner.records.extend(records);
        Ok(())
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        Ok(self.inner().records.clone())
    }

    fn forget(&self, migration: MigrationId) -> Result<(), JournalError> {
        self.inner().records.retain(|r| r.migration() != migration);
        Ok(())
    }
}
