//! The ends of migrations as files in the VM's directory: whoever did not listen reads them later.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::api::Event;

const DIR: &str = "migrations";

/// The file of the end of migration `id`, in the VM's directory `dir`.
#[must_use]
pub fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join(DIR).join(format!("{id}.json"))
}

/// How migration `id` ended, as far as that is written down: [`Event::Migrated`] or
/// [`Event::Received`]. Blocks.
///
/// # Errors
/// The file is there, and cannot be read or understood.
pub fn read(dir: &Path, id: &str) -> io::Result<Option<Event>> {
    match fs::read(path(dir, id)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes down how migration `id` ended: the whole file is on disk, or none. Blocks.
pub(crate) fn write(dir: &Path, id: &str, end: &Event) -> io::Result<()> {
    let path = path(dir, id);
    fs::create_dir_all(dir.join(DIR))?;
    write_whole(&path, &serde_json::to_vec(end)?)
}

/// Writes a file in a directory that is there: the whole of it is on disk, or what was before.
/// Blocks.
///
/// # Errors
/// As the file system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let id = "0".repeat(32);
        assert!(read(dir.path(), &id).unwrap().is_none());
        let end = Event::Received {
            completed: false,
            reason: Some("nobody came".to_owned()),
            io: None,
            peak_extra_rss_bytes: 7,
            resumed_ns: None,
            migration_id: Some(id.clone()),
            timeline: Box::default(),
        };
        write(dir.path(), &id, &end).unwrap();
        match read(dir.path(), &id).unwrap() {
            Some(Event::Received {
                completed: false,
                reason: Some(reason),
                ..
            }) => assert_eq!(reason, "nobody came"),
            other => panic!("{other:?}"),
        }
        fs::write(path(dir.path(), &id), "half").unwrap();
        assert!(read(dir.path(), &id).is_err());
    }
}
