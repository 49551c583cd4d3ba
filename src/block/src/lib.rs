//! Disks: jobs, the table that knows where each of them is, and the backends that do them.
//!
//! [`table::Table`] is pure: it is told of requests and completions, and says what to submit, to
//! cancel, to complete. A [`BlockBackend`] does what storage does, without ever waiting for it.
//! Who drives both is a disk's worker in the machine. docs/storage-io.md has states and proofs.

pub mod backend;
pub mod buffers;
pub mod nbd;
pub mod spec;
pub mod table;

pub use backend::{BlockBackend, Completion, Geometry, OpenError, Operation};
pub use buffers::Buffers;
pub use spec::{DiskSource, DiskSpec};
pub use vmferry_protocol::storage::{
    Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement,
};
