//! Disks: virtio-blk over virtio-mmio, version 2, one thread a disk.
//!
//! A vCPU's access to a disk's registers goes to [`mmio`]; what it asks for is done by the disk's
//! [`worker`], which owns the queues, the table of jobs and the backend. [`Disks`] is what the
//! rest of the program holds of it.

mod disk;
mod disks;
mod mmio;
mod offer;
mod open;
mod request;
mod ring;
mod shared;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod worker;

pub use disks::{DiskStats, Disks, HeldIo, IoEvent, IoSink};
pub(crate) use mmio::QUEUE_NOTIFY;
pub use open::OpenDisk;
pub(crate) use state::SavedDisk;
pub use vmferry_block::{MAX_QUEUES, Role};

/// Most disks of a machine: the I/O APIC has interrupt lines for no more.
pub const MAX_DISKS: usize = 8;
/// Interrupt line of the first disk; the next disk has the next.
pub(crate) const FIRST_GSI: u32 = 16;
