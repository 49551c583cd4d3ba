//! The journal on disk: a sled tree of numbered entries, flushed entry by entry.
//!
//! sled's own flush hands its log to the disk by `sync_file_range`, which empties no disk cache
//! and writes no metadata (man sync_file_range): enough for a killed process, not for a host that
//! loses power. So a flush here ends with `fdatasync` of sled's file.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

use crate::{Journal, JournalError, entry};

/// The file that sled keeps everything in.
const FILE: &str = "db";
const TREE: &str = "ownership-1";
const OPENED: &str = "opened";
/// Page cache of the database, in bytes: the journal is small and written, hardly ever read.
const CACHE: u64 = 1 << 20;
/// How long to wait for the directory's lock: sled's own threads keep it for a moment after a
/// journal was dropped.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// A journal in a directory of its own, open in one process at a time.
#[derive(Debug)]
pub struct SledJournal {
    db: sled::Db,
    tree: sled::Tree,
    file: File,
    /// Number of the next entry. Held while writing, so that entries are in the order of appends.
    next: Mutex<u64>,
}

fn key_of(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

impl SledJournal {
    /// Opens the journal in `dir`, or begins it.
    ///
    /// # Errors
    /// [`JournalError::Open`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let open_error = |e: sled::Error| JournalError::Open {
            path: dir.to_owned(),
            why: explain(&e),
        };
        let db = open_db(dir).map_err(open_error)?;
        let tree = db.open_tree(TREE).map_err(open_error)?;
        let file = File::open(dir.join(FILE))
            .and_then(|file| sync_new(dir, &file).map(|()| file))
            .map_err(|e| open_error(e.into()))?;
        let last = tree.last().map_err(open_error)?;
        let next = last.and_then(|(key, _)| key_of(&key)).map_or(0, |k| k + 1);
        let journal = Self {
            db,
            tree,
            file,
            next: Mutex::new(next),
        };
        // The first write makes sled lay out its file, which takes many milliseconds: not later,
        // in somebody's blackout.
        journal
            .db
            .insert(OPENED, &next.to_be_bytes())
            .map_err(open_error)?;
        journal.flush()?;
        Ok(journal)
    }

    fn entries(&self) -> impl Iterator<Item = Result<(u64, Record), JournalError>> {
        self.tree.iter().map(|item| {
            let (key, value) = item.map_err(|e| JournalError::Read(explain(&e)))?;
            let number = key_of(&key).ok_or(JournalError::Damaged {
                key: u64::MAX,
                what: "its number has another length",
            })?;
            match entry::decode(&value) {
                Ok(record) => Ok((number, record)),
                Err(what) => Err(JournalError::Damaged { key: number, what }),
            }
        })
    }

    fn flush(&self) -> Result<(), JournalError> {
        self.db
            .flush()
            .and_then(|_| Ok(self.file.sync_data()?))
            .map_err(|e| JournalError::Write(explain(&e)))
    }
}

fn open_db(dir: &Path) -> sled::Result<sled::Db> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE)
        // Flushed by `append`; a timer would only compete with it.
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace);
    let give_up_at = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Err(e) if is_locked(&e) && Instant::now() < give_up_at => {
                std::thread::sleep(LOCK_POLL);
            }
            other => return other,
        }
    }
}

/// The directory's entry for a new file must be on disk too, and that of a new directory.
fn sync_new(dir: &Path, file: &File) -> std::io::Result<()> {
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    match dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// sled has no kind for it, only words.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(e) if e.to_string().contains("could not acquire lock"))
}

fn explain(error: &sled::Error) -> String {
    if is_locked(error) {
        "it is open already, in this process or another".to_owned()
    } else {
        error.to_string()
    }
}

impl Journal for SledJournal {
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut number) = (sled::Batch::default(), *next);
        for record in records {
            let bytes = entry::encode(record).map_err(|e| JournalError::Write(e.to_string()))?;
            batch.insert(&number.to_be_bytes(), bytes);
            number += 1;
        }
        self.tree
            .apply_batch(batch)
            .map_err(|e| JournalError::Write(explain(&e)))?;
        *next = number;
        self.flush()
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        self.entries().map(|e| e.map(|(_, r)| r)).collect()
    }

    fn forget(&self, migration: MigrationId) -> Result<(), JournalError> {
        for item in self.entries() {
            let (number, record) = item?;
            if record.migration() == migration {
                self.tree
                    .remove(number.to_be_bytes())
                    .map_err(|e| JournalError::Write(explain(&e)))?;
            }
        }
        self.flush()
    }
}
