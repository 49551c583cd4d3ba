//! The binary, run by somebody who may do next to nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const NOBODY: u32 = 65534;

/// Only root can be somebody else.
pub(crate) fn is_root() -> bool {
    // SAFETY: asks who runs this.
    unsafe { libc::geteuid() == 0 }
}

/// A copy of the binary where everybody may read it; gone with this.
pub(crate) struct Nobody(TempDir);

impl Nobody {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755));
        let binary = dir.path().join("vmferry");
        fs::copy(super::BIN, &binary).unwrap();
        open(dir.path()).and_then(|()| open(&binary)).unwrap();
        Self(dir)
    }

    /// To be run as nobody; where this is not root's, as whoever runs it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.0.path().join("vmferry"));
        command.current_dir("/");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}
