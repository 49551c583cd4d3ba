//! Registers of devices as native threads reach them: by call, where a vCPU would leave its guest.

/// Devices on memory-mapped registers. Called from any vCPU's thread; must not block.
pub(crate) trait RegisterIo: Send + Sync {
    /// Reads 32 bits at guest-physical address `addr`; all ones where there is no register.
    fn read32(&self, addr: u64) -> u32;

    /// Writes 32 bits at guest-physical address `addr`.
    fn write32(&self, addr: u64, value: u32);
}
