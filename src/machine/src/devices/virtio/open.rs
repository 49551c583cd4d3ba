//! How a machine comes by its disks' backends.

use std::sync::Arc;

use vmferry_block::{BlockBackend, DiskSpec, OpenError};

/// What the machine is to its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It owns them.
    Owner,
    /// It comes from another host, which owns them until the handover.
    Heir,
}

/// Opens a disk.
pub type OpenDisk =
    Arc<dyn Fn(&DiskSpec, Role) -> Result<Box<dyn BlockBackend>, OpenError> + Send + Sync>;

/// Opens a disk where its description says it is.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn open(spec: &DiskSpec, _role: Role) -> Result<Box<dyn BlockBackend>, OpenError> {
    Err(OpenError {
        disk: spec.source.to_string(),
        why: "this vmferry has no backend for it".to_owned(),
    })
}
