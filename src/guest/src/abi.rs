//! How a workload talks to whoever runs it: the *workload port*, 32-bit port IO.
//!
//! The VMM knows which vCPU it serves, so no register names it. A native thread calls the same
//! functions directly.

/// OUT: heartbeat; the low 32 bits of the work done so far.
pub const PORT_HEARTBEAT: u16 = 0x510;
/// IN: a [command](COMMAND_NONE) for this vCPU, taken once.
pub const PORT_COMMAND: u16 = 0x514;
/// OUT: sleep for that many microseconds, at most [`MAX_SLEEP_US`].
pub const PORT_SLEEP: u16 = 0x518;
/// OUT: result of a verify: [`VERIFY_OK`], or one more than the page that is wrong.
pub const PORT_VERIFIED: u16 = 0x51c;
/// OUT: this vCPU has filled its share of RAM and begins to work.
pub const PORT_READY: u16 = 0x520;
/// OUT: heartbeat of disk IO; the low 32 bits of the number of disk requests completed.
pub const PORT_DISK: u16 = 0x524;
/// OUT, 8 bits: text for people.
pub const PORT_DEBUG: u16 = 0xe9;

/// Nothing to do.
pub const COMMAND_NONE: u32 = 0;
/// Verify all RAM, and all blocks of the disk that no request is in flight for, then go on. Does
/// not wait for requests that do not come back.
pub const COMMAND_VERIFY: u32 = 1;
/// Let every disk request in flight come back, however long that takes; then verify all blocks of
/// the disk, and all RAM.
pub const COMMAND_VERIFY_SETTLED: u32 = 2;

/// All is as it must be.
pub const VERIFY_OK: u32 = 0;
/// The work done does not fit the ledger.
pub const VERIFY_LEDGER: u32 = u32::MAX;
/// Registers that nobody writes have changed.
pub const VERIFY_REGISTERS: u32 = u32::MAX - 1;
/// The disk does not hold what was acknowledged, or does not do as a disk must: the debug port has
/// the details. Once so, every verify says it.
pub const VERIFY_DISK: u32 = u32::MAX - 2;

/// Longest sleep by [`PORT_SLEEP`], in microseconds.
pub const MAX_SLEEP_US: u32 = 10_000;
/// Most vCPUs of a workload.
pub const MAX_VCPUS: u32 = 8;
/// Guest-physical address at which the workload's memory begins; below it are firmware data and
/// the payload itself.
pub const ARENA_GPA: u64 = 4 << 20;

/// Guest-physical address of the registers of the first disk (virtio over MMIO, version 2). The
/// next disk's follow after [`DISK_MMIO_SIZE`] bytes.
pub const DISK_MMIO_BASE: u64 = 0xd000_0000;
/// Bytes between the registers of two disks.
pub const DISK_MMIO_SIZE: u64 = 0x1000;
