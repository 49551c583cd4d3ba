//! Where the API listens.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmferry_transports::{TlsIdentity, TransportError};

/// Where to listen: at least one of both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// A unix socket, for users of this machine. Its directory has to be there.
    pub unix: Option<PathBuf>,
    /// TCP, with certificates on both sides.
    pub tls: Option<TlsListen>,
}

/// TCP with TLS 1.3; clients show a certificate of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsListen {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    /// This host's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Why the API does not listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Neither a socket nor an address was given.
    #[error(
        "the API would listen nowhere: give a unix socket, an address with certificates, or both"
    )]
    Nowhere,
    /// Somebody listens there.
    #[error("{0}: another process listens there; stop it, or give another path")]
    Taken(PathBuf),
    /// Something is there that is no socket.
    #[error("{0}: there is something that is no socket; move it away, or give another path")]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("{at}: {what}: {source}")]
    System {
        /// Path or address.
        at: String,
        /// What was tried.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The certificates are not usable.
    #[error(transparent)]
    Tls(#[from] TransportError),
}

fn system(at: impl ToString, what: &'static str) -> impl FnOnce(io::Error) -> ListenError {
    let at = at.to_string();
    move |source| ListenError::System { at, what, source }
}

/// A socket's file; it goes with this, if it is still the same.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket at `path`, mode 0600 from its first moment. One that nobody listens to is replaced.
pub(super) fn unix(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let shown = path.display();
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Of two services that start at once, the second looks when the first listens.
    let directory = File::open(parent).map_err(system(parent.display(), "cannot be opened"))?;
    directory
        .lock()
        .map_err(system(parent.display(), "cannot be locked"))?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(ListenError::Taken(path.to_owned())),
            Err(e) => return Err(system(shown, "who listens there cannot be found out")(e)),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(system(shown, "cannot be looked at")(e)),
    }
    // Bound where nobody else can reach it, and moved when its mode is right.
    let hidden = parent.join(format!(".{}", std::process::id()));
    DirBuilder::new()
        .mode(0o700)
        .create(&hidden)
        .map_err(system(hidden.display(), "cannot be made"))?;
    let inside = hidden.join("s");
    let listening = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&inside)?.ino();
        listener.set_nonblocking(true)?;
        fs::rename(&inside, path)?;
        Ok((listener, inode))
    });
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&hidden);
    let (listener, inode) = listening.map_err(system(shown, "cannot be listened at"))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode,
    };
    Ok((listener, file))
}

/// A listener on TCP and what TLS needs.
pub(super) fn tls(asked: &TlsListen) -> Result<(TcpListener, rustls::ServerConfig), ListenError> {
    let identity = TlsIdentity::from_files(&asked.ca, &asked.certificate, &asked.key)?;
    let at = asked.address;
    let listener = TcpListener::bind(at).map_err(system(at, "cannot be listened at"))?;
    listener
        .set_nonblocking(true)
        .map_err(system(at, "cannot be listened at"))?;
    // The server adds its protocol's name itself.
    Ok((listener, identity.server_config(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_replaced_only_if_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (first, file) = unix(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(matches!(unix(&path), Err(ListenError::Taken(_))));

        // As a killed service leaves it.
        drop(first);
        std::mem::forget(file);
        let (_second, file) = unix(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(&path), Err(ListenError::NoSocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = unix(&dir.path().join("missing/api.sock")).unwrap_err();
        assert!(
            nowhere.to_string().contains("missing: cannot be opened"),
            "{nowhere}"
        );
    }
}
