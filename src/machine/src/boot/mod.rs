//! What a PC's firmware would do, as little as a PVH kernel asks for: the kernel, its initial RAM
//! disk and the start info are put into RAM. Setting the vCPUs is not done here.
//!
//! Low memory: start info, module list and memory map from 0x6000, the command line at 0x20000,
//! the MP table at 0x9fc00, where kernels look for it. Kernels go where their ELF headers say,
//! from 1 MiB; the RAM disk to the end of the RAM below the device hole.

mod elf;
mod mptable;
mod pvh;
mod source;

use std::path::Path;

use vm_memory::{Bytes, GuestAddress};
use vmferry_memory::GuestRam;
use vmferry_protocol::PAGE_SIZE;

use crate::MachineError;
use source::Source;

pub(crate) use pvh::START_INFO;

/// What is to be loaded.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// An ELF file, by its path or as it is in memory.
    pub(crate) kernel: Result<&'a Path, &'static [u8]>,
    /// Initial RAM disk.
    pub(crate) initrd: Option<&'a Path>,
    /// Command line.
    pub(crate) cmdline: &'a str,
    /// vCPUs that the MP table lists; none for payloads that need no such table.
    pub(crate) mp_table: Option<u32>,
}

/// Loads `image` into `ram`, which is all zero, and returns the address of the kernel's PVH entry.
///
/// # Errors
/// [`MachineError::Config`] in words, [`MachineError::File`].
pub(crate) fn load(ram: &GuestRam, image: &Image<'_>) -> Result<u32, MachineError> {
    let kernel = match image.kernel {
        Ok(path) => Source::open("the kernel", path)?,
        Err(bytes) => Source::Memory(bytes),
    };
    let loaded = elf::load(ram, &kernel)?;
    let module = match image.initrd {
        Some(path) => load_initrd(ram, path, loaded.end)?,
        None => None,
    };
    pvh::write(ram, image.cmdline, module)?;
    if let Some(vcpus) = image.mp_table {
        put(ram, mptable::ADDRESS, &mptable::table(vcpus))?;
    }
    Ok(loaded.entry)
}

/// Address and size of the RAM disk, unless it is empty.
fn load_initrd(
    ram: &GuestRam,
    path: &Path,
    kernel_end: u64,
) -> Result<Option<(u64, u64)>, MachineError> {
    let initrd = Source::open("the initrd", path)?;
    let size = initrd.len();
    let lowest = kernel_end.next_multiple_of(PAGE_SIZE);
    let top = low_ram(ram);
    let at = top.saturating_sub(size) & !(PAGE_SIZE - 1);
    if at < lowest {
        return Err(MachineError::Config(format!(
            "the initrd of {} MiB does not fit beside the kernel, which ends at {} MiB, in {} MiB \
             of RAM: give the machine more RAM (below 3 GiB counts), or a smaller initrd",
            size.div_ceil(1 << 20),
            kernel_end.div_ceil(1 << 20),
            top >> 20
        )));
    }
    if size == 0 {
        return Ok(None);
    }
    initrd.copy_to(ram, 0, size, at)?;
    Ok(Some((at, size)))
}

/// Bytes of RAM below the device hole.
fn low_ram(ram: &GuestRam) -> u64 {
    ram.regions().first().map_or(0, |r| r.range.bytes())
}

/// Writes `bytes` to guest-physical address `at`.
fn put(ram: &GuestRam, at: u64, bytes: &[u8]) -> Result<(), MachineError> {
    ram.guest_memory()
        .write_slice(bytes, GuestAddress(at))
        .map_err(|_| {
            MachineError::Config(format!(
                "{} bytes to be loaded at {at:#x} do not fit into RAM: give the machine more",
                bytes.len()
            ))
        })
}
