//! Where a kernel or RAM disk is read from: a file, or memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmferry_memory::GuestRam;

use super::put;
use crate::MachineError;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Memory(&'a [u8]),
    File {
        file: File,
        len: u64,
        what: &'static str,
        path: String,
    },
}

impl Source<'_> {
    /// Opens the regular file at `path`.
    pub(super) fn open(what: &'static str, path: &Path) -> Result<Self, MachineError> {
        let failed = |source| MachineError::File {
            what,
            path: path.display().to_string(),
            source,
        };
        // Looked at first: to open a pipe may never return, to open a device may have effects.
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Self::File {
            file,
            len,
            what,
            path: path.display().to_string(),
        })
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// The name for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Memory(_) => "the built-in workload".to_owned(),
            Self::File { what, path, .. } => format!("{what} '{path}'"),
        }
    }

    /// Fills `out` from `offset`; an error where the file is shorter than that.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MachineError> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).ok();
                let part = from.and_then(|from| bytes.get(from..)?.get(..out.len()));
                out.copy_from_slice(
                    part.ok_or_else(|| {
                        MachineError::Config(format!("{} is cut off", self.name()))
                    })?,
                );
                Ok(())
            }
            Self::File {
                file, what, path, ..
            } => file
                .read_exact_at(out, offset)
                .map_err(|source| MachineError::File {
                    what,
                    path: path.clone(),
                    source,
                }),
        }
    }

    /// Copies `size` bytes from `offset` to guest-physical address `at`.
    pub(super) fn copy_to(
        &self,
        ram: &GuestRam,
        offset: u64,
        size: u64,
        at: u64,
    ) -> Result<(), MachineError> {
        let mut chunk = vec![0; size.min(CHUNK) as usize];
        let mut done = 0;
        while done < size {
            let n = (size - done).min(CHUNK);
            let part = &mut chunk[..n as usize];
            self.read(offset + done, part)?;
            put(ram, at + done, part)?;
            done += n;
        }
        Ok(())
    }
}
