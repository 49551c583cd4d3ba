//! The durable journal of ownership records, and of the storage jobs that go with a guest.
//!
//! [`Journal::append`] returns when the record is on disk: the protocol's `Persist` is stored by
//! it. [`SledJournal`] is the real one, [`MemoryJournal`] its twin for tests. What the records
//! mean after a crash is for [`vmferry_protocol::ownership::recover`] to say, not for this crate.

mod entry;
mod memory;
mod sled_journal;

use std::path::PathBuf;

use thiserror::Error;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

pub use memory::MemoryJournal;
pub use sled_journal::SledJournal;

/// Why the journal could not be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory cannot be opened as a journal.
    #[error("cannot open the journal in '{path}': {why}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Writing or flushing failed: nothing that depends on the record may happen.
    #[error("cannot write the journal: {0}")]
    Write(String),
    /// Reading failed.
    #[error("cannot read the journal: {0}")]
    Read(String),
    /// An entry that is not what was written.
    #[error("journal entry {key} is damaged: {what}; do not resume a guest of this host by guess")]
    Damaged {
        /// Its number.
        key: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A journal. Shared by threads; calls block for as long as the disk takes.
pub trait Journal: Send + Sync {
    /// Adds records, in this order, all or none; on `Ok` they are on disk.
    ///
    /// # Errors
    /// [`JournalError::Write`]: the records may or may not be there after a crash.
    fn append(&self, records: &[Record]) -> Result<(), JournalError>;

    /// Every record, oldest first.
    ///
    /// # Errors
    /// [`JournalError::Read`], [`JournalError::Damaged`].
    fn records(&self) -> Result<Vec<Record>, JournalError>;

    /// Drops the records of a migration that is over on both sides.
    ///
    /// # Errors
    /// [`JournalError`]; the records may be there again after a crash.
    fn forget(&self, migration: MigrationId) -> Result<(), JournalError>;
}
