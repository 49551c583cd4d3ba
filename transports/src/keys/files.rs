//! Key files: whole or not there, and readable by whom they are meant for from their first byte on.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::failed;
use crate::TransportError;

/// What to do where a file is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays as it is: an error.
    Keep,
    /// It is replaced.
    Replace,
}

/// Makes a directory where there is none.
pub(super) fn make(dir: &Path) -> Result<(), TransportError> {
    fs::create_dir_all(dir).map_err(|e| failed(&dir.display().to_string(), &e))
}

/// An error if a file is there and has to stay. For before the first of several is written.
pub(super) fn may_write(at: &Path, existing: Existing) -> Result<(), TransportError> {
    if existing == Existing::Keep && at.symlink_metadata().is_ok() {
        return Err(there_already(at));
    }
    Ok(())
}

/// Writes a file under another name, and gives it its own when it is whole.
pub(super) fn write(
    at: &Path,
    content: &str,
    mode: u32,
    existing: Existing,
) -> Result<(), TransportError> {
    let dir = at.parent().unwrap_or(Path::new("."));
    let fill = || -> io::Result<NamedTempFile> {
        // Mode 0600 until the content is there.
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(content.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    let name = at.display().to_string();
    let file = fill().map_err(|e| failed(&name, &e))?;
    let placed = match existing {
        Existing::Replace => file.persist(at),
        Existing::Keep => file.persist_noclobber(at),
    };
    placed.map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => there_already(at),
        _ => failed(&name, &e.error),
    })?;
    let sync = || fs::File::open(dir)?.sync_all();
    sync().map_err(|e| failed(&dir.display().to_string(), &e))
}

fn there_already(at: &Path) -> TransportError {
    TransportError::Tls {
        what: at.display().to_string(),
        why: "is there already, and stays as it is".to_owned(),
    }
}
