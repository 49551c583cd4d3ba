//! KVM's memory slots: turns the logging of dirty pages on and off. Slot `i` is region `i` of RAM.

use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vmferry_memory::GuestRam;

/// Has KVM log which pages of `ram`, which `vm`'s slots map already, are written; or no longer.
pub(crate) fn log_dirty_pages(vm: &VmFd, ram: &GuestRam, on: bool) -> io::Result<()> {
    set(vm, ram, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
}

/// Gives `vm`, which has no slots yet, its RAM; `ram` is to be dropped after it.
pub(crate) fn give_ram(vm: &VmFd, ram: &GuestRam) -> io::Result<()> {
    set(vm, ram, 0)
}

fn set(vm: &VmFd, ram: &GuestRam, flags: u32) -> io::Result<()> {
    for (slot, region) in ram.regions().iter().enumerate() {
        let arg = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: region.range.gpa(),
            memory_size: region.range.bytes(),
            userspace_addr: region.hva as u64,
        };
        // SAFETY: the slot maps exactly this region, which the caller keeps mapped, and no Rust
        // reference points into it.
        unsafe { vm.set_user_memory_region(arg) }?;
    }
    Ok(())
}
