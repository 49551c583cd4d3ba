//! What happened to a disk, in order: one file that all processes of a run append to.
//!
//! A record is one `write` to a file opened with `O_APPEND`: it is whole and in order, and stays
//! when its process is killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use vmferry_guest::disk::stamp::Stamp;

/// Bytes of a record.
const BYTES: usize = 48;

/// Which process of a run, in the order in which they were started.
pub type Process = u8;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The guest is about to run.
    Runs,
    /// It stands.
    Stands,
    /// The backend is about to be held.
    Held,
    /// A write is about to be handed to the storage.
    Submitted(Stamp),
    /// A write was done, and nobody was told yet.
    Done(Stamp),
    /// A write whose data is not of one stamp, at this block.
    Odd(u64),
    /// The process is gone. Written by the harness.
    Died,
    /// Nobody has the disk, and nothing is in flight. Written by the harness.
    Quiet,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub process: Process,
    /// What.
    pub what: What,
}

impl What {
    fn parts(self) -> (u8, Stamp) {
        let none = Stamp {
            nonce: 0,
            block: 0,
            generation: 0,
            vcpu: 0,
        };
        match self {
            Self::Runs => (1, none),
            Self::Stands => (2, none),
            Self::Held => (3, none),
            Self::Submitted(stamp) => (4, stamp),
            Self::Done(stamp) => (5, stamp),
            Self::Odd(block) => (6, Stamp { block, ..none }),
            Self::Died => (7, none),
            Self::Quiet => (8, none),
        }
    }

    fn of(kind: u8, stamp: Stamp) -> Option<Self> {
        Some(match kind {
            1 => Self::Runs,
            2 => Self::Stands,
            3 => Self::Held,
            4 => Self::Submitted(stamp),
            5 => Self::Done(stamp),
            6 => Self::Odd(stamp.block),
            7 => Self::Died,
            8 => Self::Quiet,
            _ => return None,
        })
    }
}

/// The file, as a process writes it.
#[derive(Debug)]
pub struct Log {
    file: File,
    process: Process,
}

impl Log {
    /// Opens it, or begins it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(path: &Path, process: Process) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file, process })
    }

    /// Adds a record.
    ///
    /// # Panics
    /// Where it cannot be written: the run proves nothing then.
    pub fn add(&self, what: What) {
        let (kind, stamp) = what.parts();
        let mut bytes = [0; BYTES];
        (bytes[0], bytes[1]) = (kind, self.process);
        bytes[8..16].copy_from_slice(&stamp.block.to_le_bytes());
        bytes[16..24].copy_from_slice(&stamp.nonce.to_le_bytes());
        bytes[24..28].copy_from_slice(&stamp.generation.to_le_bytes());
        bytes[28..32].copy_from_slice(&stamp.vcpu.to_le_bytes());
        (&self.file).write_all(&bytes).expect("the log of writes");
    }
}

/// Reads it.
///
/// # Errors
/// In words: it cannot be read, or is not such a file.
pub fn read(path: &Path) -> Result<Vec<Record>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("the log of writes: {e}"))?;
    if !bytes.len().is_multiple_of(BYTES) {
        return Err("the log of writes ends within a record".to_owned());
    }
    let record = |bytes: &[u8]| {
        let u64_at = |at: usize| {
            let word = bytes[at..].first_chunk().copied();
            word.map_or(0, u64::from_le_bytes)
        };
        let who = u64_at(24);
        let stamp = Stamp {
            block: u64_at(8),
            nonce: u64_at(16),
            generation: who as u32,
            vcpu: (who >> 32) as u32,
        };
        let what = What::of(bytes[0], stamp).ok_or("the log of writes is damaged")?;
        let process = bytes[1];
        Ok(Record { process, what })
    };
    bytes.chunks_exact(BYTES).map(record).collect()
}
