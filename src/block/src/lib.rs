//! Disks: jobs, the table that knows where each of them is, and the backends that do them.
//!
//! [`table::Table`] is pure: it is told of requests and completions, and says what to submit, to
//! cancel, to complete. A [`BlockBackend`] does what storage does, without ever waiting for it;
//! [`open`](open()) makes one of what a [`DiskSpec`] says. Who drives both is a disk's worker in
//! the machine. docs/storage-io.md has states and proofs.

pub mod backend;
pub mod buffers;
mod detached;
mod file;
mod lock;
pub mod memory;
pub mod nbd;
mod open;
mod slow;
pub mod spec;
pub mod table;

pub use backend::{BlockBackend, Completion, FormerOwner, Geometry, OpenError, Operation};
pub use buffers::Buffers;
pub use file::{Caching, FileBackend};
pub use memory::{MemoryBackend, MemoryDisk};
pub use open::{Role, open};
pub use slow::Slow;
pub use spec::{DiskSource, DiskSpec, MAX_QUEUES};
pub use vmferry_protocol::storage::{
    Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement,
};
