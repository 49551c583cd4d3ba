//! What a workload needs of whoever runs it.

use crate::disk::Failure;

/// Ports, registers and a clock, or what takes their place.
pub trait Platform {
    /// The time stamp counter, or anything that counts `tsc_khz` thousand a second.
    fn tsc(&mut self) -> u64;
    /// See [`PORT_HEARTBEAT`](crate::abi::PORT_HEARTBEAT).
    fn heartbeat(&mut self, work: u64);
    /// See [`PORT_COMMAND`](crate::abi::PORT_COMMAND).
    fn command(&mut self) -> u32;
    /// See [`PORT_SLEEP`](crate::abi::PORT_SLEEP).
    fn sleep_us(&mut self, us: u32);
    /// See [`PORT_VERIFIED`](crate::abi::PORT_VERIFIED).
    fn verified(&mut self, result: u32);
    /// See [`PORT_READY`](crate::abi::PORT_READY).
    fn ready(&mut self);
    /// Whether registers that nobody writes are as they were set; true where there are none.
    fn registers_intact(&mut self) -> bool;
    /// Reads a device's register of 32 bits at a guest-physical address; all ones where there is
    /// no device.
    fn mmio_read32(&mut self, addr: u64) -> u32;
    /// Writes a device's register of 32 bits at a guest-physical address.
    fn mmio_write32(&mut self, addr: u64, value: u32);
    /// See [`PORT_DISK`](crate::abi::PORT_DISK).
    fn disk_beat(&mut self, completed: u64);
    /// Says on the debug port, as a line of text, what is wrong with the disk.
    fn disk_failed(&mut self, failure: &Failure);
}
