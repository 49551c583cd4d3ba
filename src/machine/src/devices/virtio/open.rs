//! How a machine comes by its disks' backends.

use std::sync::Arc;

use vmferry_block::{BlockBackend, DiskSpec, OpenError, Role};

/// Opens a disk.
pub type OpenDisk =
    Arc<dyn Fn(&DiskSpec, Role) -> Result<Box<dyn BlockBackend>, OpenError> + Send + Sync>;
