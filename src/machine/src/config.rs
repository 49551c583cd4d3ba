//! What a machine is made from: plain data, which travels to the destination of a migration.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vmferry_block::DiskSpec;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u32 = 8;

/// The sorts of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// A KVM virtual machine.
    Kvm,
    /// The built-in workload as native threads. Not a virtual machine.
    Process,
}

impl MachineKind {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Process => "process",
        }
    }
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// The built-in workload.
    Workload {
        /// Its command line, without `vcpus=` and `tsc-khz=`, which the machine adds.
        cmdline: String,
    },
    /// A kernel that boots by PVH.
    Kernel {
        /// An ELF file with the PVH entry note.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Command line.
        cmdline: String,
    },
}

/// Where a console's output goes. Unbuffered; a file is appended to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// Nowhere.
    #[default]
    None,
    /// Standard output of the VM process.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
    /// A unix socket that the VM process listens on; one client at a time.
    Socket(PathBuf),
}

impl FromStr for Console {
    type Err = Infallible;

    /// `none`, `stdout`, `unix:PATH`, or a file's path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix("unix:") {
            Some(path) => Self::Socket(path.into()),
            None if text == "none" => Self::None,
            None if text == "stdout" => Self::Stdout,
            None => Self::File(text.into()),
        })
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A machine, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The sort.
    pub kind: MachineKind,
    /// Size of RAM in bytes, a multiple of 2 MiB.
    pub ram_bytes: u64,
    /// Virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// What is booted.
    pub boot: Boot,
    /// The 16550 serial port at 0x3f8.
    pub serial: Console,
    /// The debug port 0xe9.
    pub debugcon: Console,
    /// Whether KVM keeps dirty rings, for the tracker `kvm-ring`, in place of a dirty log. That is
    /// settled when a machine is made, here as at the destination of a migration.
    #[serde(default)]
    pub dirty_rings: bool,
    /// Its disks, at most [`crate::MAX_DISKS`], in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_are_read_from_what_is_written() {
        for text in ["none", "stdout", "unix:/run/c.sock", "out.log"] {
            let console: Console = text.parse().unwrap();
            assert_eq!(console.to_string(), text);
        }
    }
}
