//! Files under the state directory, each written whole or not at all, by one thread in order.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use vmferry_vmm::ends::write_whole;

use crate::control::ControlError;

/// Directory of the VMs' directories, under the state directory.
pub const VMS: &str = "vms";
const MIGRATIONS: &str = "migrations";
/// What is being removed.
const TRASH: &str = "trash";
/// How long somebody else may still have the lock.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
const LOCK: &str = "service.lock";

/// What is done on disk.
#[derive(Debug)]
enum Work {
    Write(PathBuf, Vec<u8>),
    Remove(PathBuf),
    Nothing,
}

#[derive(Debug)]
struct Job {
    work: Work,
    done: Option<oneshot::Sender<io::Result<()>>>,
}

/// The state directory, held by this service alone. Dropping it waits for what is to be written.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Locked for as long as the service lives.
    _lock: File,
}

impl Store {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    /// In words.
    pub(super) fn open(dir: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("the state directory '{}': {e}", dir.display());
        for dir in [dir, &dir.join(VMS), &dir.join(MIGRATIONS)] {
            private_dir(dir).map_err(failed)?;
        }
        let lock = File::create(dir.join(LOCK)).map_err(failed)?;
        hold(&lock).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => format!(
                "the state directory '{}' is in use by another host service: end that one, or \
                 give this one a directory of its own",
                dir.display()
            ),
            e => failed(e.into()),
        })?;
        // An earlier service may have ended before it was through with it.
        // VM processes are told where their files are, whatever their working directory.
        let dir = std::path::absolute(dir).map_err(failed)?;
        let (vms, trash) = (dir.join(VMS), dir.join(TRASH));
        discard(&trash).map_err(failed)?;
        let (jobs, work) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work_off(&work, &vms, &trash))
            .map_err(failed)?;
        Ok(Self {
            dir: dir.clone(),
            jobs: Some(jobs),
            thread: Some(thread),
            _lock: lock,
        })
    }

    /// A file or directory of the service's own.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of all VMs' directories.
    pub(super) fn vms(&self) -> PathBuf {
        self.dir.join(VMS)
    }

    /// The directory of a VM.
    pub(super) fn vm(&self, name: &str) -> PathBuf {
        self.vms().join(name)
    }

    /// The directory of all migrations' directories.
    pub(super) fn migrations(&self) -> PathBuf {
        self.dir.join(MIGRATIONS)
    }

    /// A file of a migration.
    pub(super) fn migration(&self, id: &str, file: &str) -> PathBuf {
        self.migrations().join(id).join(file)
    }

    /// Writes `value` as JSON; it is on disk when this returns.
    ///
    /// # Errors
    /// [`ControlError::Failed`].
    pub(super) async fn write(
        &self,
        path: PathBuf,
        value: &impl Serialize,
    ) -> Result<(), ControlError> {
        let failed = failed(&path);
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
        self.ask(Work::Write(path, bytes)).await.map_err(failed)
    }

    /// The same, without waiting; what goes wrong is logged.
    pub(super) fn write_later(&self, path: PathBuf, value: &impl Serialize) {
        match serde_json::to_vec_pretty(value) {
            Ok(bytes) => self.send(Work::Write(path, bytes), None),
            Err(error) => tracing::error!(%error, path = %path.display(), "cannot be written"),
        }
    }

    /// Removes a directory and all that is in it, if it is there.
    ///
    /// # Errors
    /// [`ControlError::Failed`].
    pub(super) async fn remove(&self, dir: PathBuf) -> Result<(), ControlError> {
        let failed = failed(&dir);
        self.ask(Work::Remove(dir)).await.map_err(failed)
    }

    /// The same, without waiting.
    pub(super) fn remove_later(&self, dir: PathBuf) {
        self.send(Work::Remove(dir), None);
    }

    /// Waits until what was to be written by now is.
    pub(super) async fn written(&self) {
        // What went wrong is logged.
        let _ = self.ask(Work::Nothing).await;
    }

    async fn ask(&self, work: Work) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.send(work, Some(done));
        result
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the service is ending")))
    }

    fn send(&self, work: Work, done: Option<oneshot::Sender<io::Result<()>>>) {
        if let Some(jobs) = &self.jobs {
            // The thread ends after this does.
            let _ = jobs.send(Job { work, done });
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ControlError + use<> {
    let path = path.display().to_string();
    move |e| ControlError::Failed(format!("'{path}' cannot be written: {e}"))
}

/// Locks it. A process that is just being started has a copy of an earlier service's lock, for the
/// moment until it becomes another program.
fn hold(lock: &File) -> rustix::io::Result<()> {
    let began = Instant::now();
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LET_GO_WITHIN => {
                std::thread::sleep(Duration::from_millis(10));
            }
            held => return held,
        }
    }
}

/// It is there as a whole, or not at all: half a VM would be taken for one.
fn remove_whole(dir: &Path, trash: &Path) -> io::Result<()> {
    let aside = match dir.file_name() {
        Some(name) => trash.join(name),
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    private_dir(trash)?;
    discard(&aside)?;
    match fs::rename(dir, &aside) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    File::open(dir.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    // It is gone for everybody; what stays of it goes when the next service starts.
    if let Err(error) = discard(&aside) {
        tracing::warn!(%error, path = %aside.display(), "left in the trash");
    }
    Ok(())
}

fn discard(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A VM's directory is made once, with the VM: what comes later finds it, or comes too late.
fn write(path: &Path, bytes: &[u8], vms: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.starts_with(vms) => private_dir(dir)?,
        _ => {}
    }
    write_whole(path, bytes)
}

fn work_off(jobs: &mpsc::Receiver<Job>, vms: &Path, trash: &Path) {
    while let Ok(Job { work, done }) = jobs.recv() {
        let result = match &work {
            Work::Write(path, bytes) => write(path, bytes, vms),
            Work::Remove(dir) => remove_whole(dir, trash),
            Work::Nothing => Ok(()),
        };
        match (result, done) {
            (result, Some(done)) => drop(done.send(result)),
            (Err(error), None) => tracing::error!(%error, ?work, "the state directory"),
            (Ok(()), None) => {}
        }
    }
}

/// Makes a directory that only its owner may enter, and those above it.
pub(super) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Reads a JSON file; none where there is none. Blocks.
///
/// # Errors
/// In words, with the file's name.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("'{}': {e}", path.display());
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| failed(&e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(&e)),
    }
}

/// The last bytes of a text file, and how many it has; nothing where there is none. Blocks.
pub(super) fn tail(path: &Path, most: u64) -> io::Result<(String, u64)> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((String::new(), 0)),
        Err(e) => return Err(e),
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_a_directory_has_one_service() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = store.migration("x", "report.json");
        assert_eq!(read::<u32>(&path), Ok(None));
        store.write(path.clone(), &7).await.unwrap();
        store.write_later(path.clone(), &8);
        assert!(Store::open(dir.path()).unwrap_err().contains("another"));
        drop(store);
        assert_eq!(read::<u32>(&path), Ok(Some(8)));
        fs::write(&path, "{").unwrap();
        assert!(read::<u32>(&path).unwrap_err().contains("report.json"));
        let store = Store::open(dir.path()).unwrap();
        store.remove(store.migrations()).await.unwrap();
        store.remove(store.migrations()).await.unwrap();
        assert_eq!(read::<u32>(&path), Ok(None));
    }

    #[tokio::test]
    async fn what_is_removed_goes_as_a_whole_and_what_was_left_of_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let half = dir.path().join(TRASH).join("web-1");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("spec.json"), "{}").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!half.exists());
        // What is written to a VM that is not there does not make it.
        let file = store.vm("web-1").join("x");
        assert!(store.write(file.clone(), &1).await.is_err());
        fs::create_dir(store.vm("web-1")).unwrap();
        store.write(file, &1).await.unwrap();
        store.remove(store.vm("web-1")).await.unwrap();
        assert!(!store.vm("web-1").exists() && !half.exists());
    }

    #[test]
    fn the_end_of_a_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        assert_eq!(tail(&path, 10).unwrap(), (String::new(), 0));
        fs::write(&path, "hello world").unwrap();
        assert_eq!(tail(&path, 5).unwrap(), ("world".to_owned(), 11));
        assert_eq!(tail(&path, 500).unwrap(), ("hello world".to_owned(), 11));
    }
}
