//! Where console output goes: nowhere, standard output, a file or a unix socket. Output is not
//! buffered, and what cannot be written is dropped: a guest is not to suffer from its log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::{Console, MachineError};

/// An open console. As a writer it never fails.
#[derive(Debug, Default)]
pub(crate) enum Output {
    #[default]
    None,
    Stdout(File),
    File(Log),
    Socket(Listening),
}

impl Output {
    /// Opens `console`; `what` names it in an error.
    ///
    /// # Errors
    /// [`MachineError::File`].
    pub(crate) fn open(what: &'static str, console: &Console) -> Result<Self, MachineError> {
        let opened = match console {
            Console::None => Ok(Self::None),
            Console::Stdout => io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(|fd| Self::Stdout(fd.into())),
            Console::File(path) => Log::open(path).map(Self::File),
            Console::Socket(path) => Listening::bind(path).map(Self::Socket),
        };
        opened.map_err(|source| MachineError::File {
            what,
            path: console.to_string(),
            source,
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None => {}
            // Once, and no more: a signal that interrupts a write to a full pipe is a wish to
            // pause, which is worth more than a byte of output.
            Self::Stdout(file) => drop(file.write(bytes)),
            Self::File(log) => log.write(bytes),
            Self::Socket(socket) => socket.send(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that a guest writes to, and may not fill a disk with: when it is large, it is moved
/// aside (`.1`), in place of the one before, and begun anew.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// Most bytes of a console's file; there are two of them at most.
const LOG_BYTES: u64 = 16 << 20;

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            // Devices are as large as they are.
            bytes: if metadata.is_file() {
                metadata.len()
            } else {
                0
            },
            file,
        })
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.bytes >= LOG_BYTES && self.file.metadata().is_ok_and(|m| m.is_file()) {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            // Where that cannot be, it grows on.
            if fs::rename(&self.path, aside).is_ok()
                && let Ok(new) = Self::open(&self.path)
            {
                *self = new;
            }
        }
        self.bytes += self.file.write(bytes).unwrap_or(0) as u64;
    }
}

/// A listening unix socket with at most one client. Clients are taken in when there is something
/// to tell them: no thread waits for them.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: UnixListener,
    client: Option<UnixStream>,
    path: PathBuf,
    inode: u64,
}

impl Listening {
    fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            client: None,
            path: path.to_owned(),
            inode: fs::symlink_metadata(path)?.ino(),
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.client.is_none()
            && let Ok((client, _)) = self.listener.accept()
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
        }
        let Some(client) = &mut self.client else {
            return;
        };
        match client.write(bytes) {
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.client = None,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another machine may have put its own socket there.
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` is a socket that nobody listens on, left by a process that died.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vmferry-console-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_file_is_appended_to_and_one_that_cannot_be_opened_is_an_error() {
        let path = scratch("file");
        fs::write(&path, "a").unwrap();
        let mut output = Output::open("serial", &Console::File(path.clone())).unwrap();
        output.write_all(b"bc").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        fs::remove_file(&path).unwrap();
        let error = Output::open("serial", &Console::File("/no/such/dir/x".into())).unwrap_err();
        assert_eq!(error.to_string(), "serial '/no/such/dir/x' cannot be used");
    }

    #[test]
    fn a_guest_that_never_stops_fills_two_files_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut output = Output::open("serial", &Console::File(path.clone())).unwrap();
        let mib = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            output.write_all(&mib).unwrap();
        }
        let bytes = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(bytes(&dir.path().join("serial.log.1")), LOG_BYTES);
        assert_eq!(bytes(&path), (40 << 20) - 2 * LOG_BYTES);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_socket_serves_one_client_after_another_and_never_blocks() {
        let path = scratch("socket");
        let mut output = Output::open("serial", &Console::Socket(path.clone())).unwrap();
        output.write_all(b"nobody listens").unwrap();
        for _ in 0..2 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.set_nonblocking(true).unwrap();
            let mut byte = [0];
            // The first bytes find out that the client before has gone.
            while client.read(&mut byte).is_err() {
                output.write_all(b"x").unwrap();
            }
            assert_eq!(byte, *b"x");
            // More than any socket buffer holds, and nobody reads.
            for _ in 0..100_000 {
                output.write_all(&[b'y'; 64]).unwrap();
            }
        }
        assert!(
            Output::open("serial", &Console::Socket(path.clone())).is_err(),
            "it is in use"
        );
        drop(output);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        drop(Output::open("serial", &Console::Socket(path.clone())).unwrap());
        assert!(!path.exists(), "a socket left behind is replaced");
    }
}
