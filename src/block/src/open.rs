//! From a disk's description to the backend that does its work.

use std::time::Duration;

use crate::file::{Caching, FileBackend};
use crate::{BlockBackend, DiskSource, DiskSpec, OpenError, Slow};

/// Why a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// For a machine that begins here: nobody else may have the disk.
    Owner,
    /// For a machine that is to come from another process, which owns the disk until it lets go.
    Heir,
    /// To see whether it is there and could be opened. Nothing is claimed, nothing can be written,
    /// and its geometry says so.
    Inspector,
}

/// Opens a disk.
///
/// # Errors
/// The description is not acceptable, the storage is not there or not to be had, or somebody
/// else has it: in words, with what to do.
pub fn open(spec: &DiskSpec, role: Role) -> Result<Box<dyn BlockBackend>, OpenError> {
    let refused = |why| OpenError {
        disk: spec.source.to_string(),
        why,
    };
    spec.check().map_err(refused)?;
    let backend: Box<dyn BlockBackend> = match &spec.source {
        DiskSource::File(path) => Box::new(FileBackend::open(
            path,
            spec.read_only,
            role,
            Caching::Direct,
        )?),
        DiskSource::Nbd(uri) => Box::new(crate::nbd::open(
            uri,
            spec.read_only || role == Role::Inspector,
        )?),
    };
    Ok(match spec.delay_ms {
        0 => backend,
        delay => Box::new(
            Slow::new(backend, Duration::from_millis(delay.into()))
                .map_err(|e| refused(format!("cannot make a timer for its delay: {e}")))?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(change: impl FnOnce(&mut DiskSpec)) -> String {
        let mut spec = DiskSource::File("/nowhere/at/all.img".into()).spec();
        change(&mut spec);
        open(&spec, Role::Owner).unwrap_err().to_string()
    }

    #[test]
    fn descriptions_are_checked_before_anything_is_opened() {
        assert!(why(|s| s.serial = "x".repeat(21)).contains("serial"));
        assert!(why(|s| s.serial = "tab\t".to_owned()).contains("serial"));
        assert!(why(|s| s.serial = "größe".to_owned()).contains("serial"));
        assert!(why(|s| s.queues = 0).contains("queues"));
        assert!(why(|s| s.queues = 9).contains("queues"));
        let missing = why(|s| s.serial = "a serial, 20 bytes!!".to_owned());
        assert!(missing.contains("/nowhere/at/all.img"), "{missing}");
    }
}
