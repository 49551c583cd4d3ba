//! Guest RAM: how it is mapped, checked access to it, and what is known about it without reading it.
//!
//! RAM is private anonymous memory in huge pages where the kernel has them, 2 MiB aligned in both
//! guest-physical and host-virtual addresses. The crate knows nothing of KVM, migrations or
//! devices. Trackers build on [`GuestRam::regions`], devices on [`GuestRam::guest_memory`].

pub mod layout;
mod mapping;
pub mod pagemap;
mod ram;

pub use layout::{LayoutError, MAX_RAM_BYTES, MMIO_HOLE_END, MMIO_HOLE_START, ram_ranges};
pub use pagemap::PopulatedSource;
pub use ram::{GuestMemory, GuestRam, MemoryError, RamRegion, for_each_run, range_at};

/// Alignment of every region in guest-physical and host-virtual addresses: an x86 huge page.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;
