//! How disks are named: `file:PATH`, `nbd:URI`, each with options.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nbd::uri::{Address, NbdUri};

/// Where a disk's content is. The same on both hosts of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSource {
    /// A raw image or block device.
    File(PathBuf),
    /// An NBD server's export: `nbd://HOST[:PORT]/EXPORT`, `nbds://…` with TLS, or
    /// `nbd+unix:///EXPORT?socket=PATH`.
    Nbd(String),
}

/// A disk, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Where its content is.
    pub source: DiskSource,
    /// The guest cannot write.
    pub read_only: bool,
    /// Serial id that the guest reads, at most 20 bytes of ASCII.
    pub serial: String,
    /// Virtqueues.
    pub queues: u16,
    /// Every operation is kept back for so long before it is done, and cannot be cancelled
    /// meanwhile: slow storage, for demonstrations and tests. In milliseconds.
    #[serde(default)]
    pub delay_ms: u32,
}

impl DiskSource {
    /// A disk there with the defaults of everything else.
    #[must_use]
    pub fn spec(self) -> DiskSpec {
        DiskSpec {
            source: self,
            read_only: false,
            serial: String::new(),
            queues: 1,
            delay_ms: 0,
        }
    }
}

/// Most bytes of a serial id: what virtio has room for.
const MAX_SERIAL: usize = 20;
/// Most virtqueues of a disk.
pub const MAX_QUEUES: u16 = 8;

impl DiskSource {
    /// Files and directories of this host that whoever opens it uses.
    ///
    /// # Errors
    /// In words, where it makes no sense.
    pub fn paths(&self) -> Result<Vec<PathBuf>, String> {
        let uri = match self {
            Self::File(path) => return Ok(vec![path.clone()]),
            Self::Nbd(uri) => NbdUri::parse(uri)?,
        };
        let socket = match uri.address {
            Address::Unix(path) => Some(path),
            Address::Tcp { .. } => None,
        };
        let certificates = uri.tls.map(|tls| tls.certificates);
        Ok(socket.into_iter().chain(certificates).collect())
    }
}

impl DiskSpec {
    /// Whether a disk can be so.
    ///
    /// # Errors
    /// In words, what cannot.
    pub fn check(&self) -> Result<(), String> {
        let (serial, queues) = (&self.serial, self.queues);
        let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
        if serial.len() > MAX_SERIAL || !serial.bytes().all(printable) {
            return Err(format!(
                "the serial {serial:?} is not acceptable: give at most {MAX_SERIAL} printable \
                 ASCII characters"
            ));
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(format!(
                "{queues} queues are not acceptable: give 1 to {MAX_QUEUES}"
            ));
        }
        Ok(())
    }
}

impl FromStr for DiskSource {
    type Err = String;

    /// `file:PATH`, or an NBD URI, with or without `nbd:` before it.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_uri = |t: &str| {
            ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"]
                .iter()
                .any(|scheme| t.starts_with(scheme))
        };
        if let Some(path) = text.strip_prefix("file:").filter(|p| !p.is_empty()) {
            return Ok(Self::File(path.into()));
        }
        let uri = text.strip_prefix("nbd:").filter(|t| is_uri(t));
        match uri.unwrap_or(text) {
            uri if is_uri(uri) => Ok(Self::Nbd(uri.to_owned())),
            _ => Err(format!(
                "'{text}' names no disk: give file:PATH, or nbd:URI with a URI like \
                 nbd://host:10809/export or nbd+unix:///export?socket=/path"
            )),
        }
    }
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read_from_what_is_written() {
        for text in ["file:/a/b.img", "nbd://h:10809/x", "nbd+unix:///?socket=/s"] {
            let source: DiskSource = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
        let with: DiskSource = "nbd:nbds://h/x".parse().unwrap();
        assert_eq!(with.to_string(), "nbds://h/x");
        for text in ["", "file:", "/a/b.img", "nbd:host", "http://x"] {
            let wrong = text.parse::<DiskSource>().unwrap_err();
            assert!(wrong.contains("nbd://host"), "{wrong}");
        }
    }
}
