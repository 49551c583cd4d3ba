//! One vCPU's dirty ring, as KVM shares it: entries that KVM fills and this side gives back, both
//! in order.
//!
//! Layout and protocol from Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::KVM_DIRTY_LOG_PAGE_OFFSET;
use kvm_ioctls::VcpuFd;
use vmferry_protocol::PAGE_SIZE;

/// Flags of an entry. It is filled; it is given back. Neither: it is free.
const DIRTY: u32 = 1 << 0;
const RESET: u32 = 1 << 1;

/// `struct kvm_dirty_gfn`. KVM writes it while this side reads: hence atomics.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();

/// A mapped ring.
#[derive(Debug)]
pub(super) struct Ring {
    entries: NonNull<Entry>,
    /// A power of two.
    len: u32,
    /// Next entry to take, and to give back; they count on beyond the ring's end.
    taken: u32,
    given_back: u32,
}

// SAFETY: the mapping is owned by this value and is not tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of `vcpu`, which has `len` entries.
    pub(super) fn map(vcpu: &VcpuFd, len: u32) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE;
        // SAFETY: a new mapping at an address of the kernel's choice, of memory that KVM keeps for
        // as long as it is mapped.
        let raw = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize * ENTRY_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(raw.cast())
            .ok_or_else(|| io::Error::other("the kernel mapped a ring at address 0"))?;
        Ok(Self {
            entries,
            len,
            taken: 0,
            given_back: 0,
        })
    }

    fn entry(&self, index: u32) -> &Entry {
        let at = (index & (self.len - 1)) as usize;
        // SAFETY: `at` is within the mapping, which lives as long as `self`; KVM's side writes
        // these aligned integers whole, and all access from here is atomic.
        unsafe { self.entries.add(at).as_ref() }
    }

    /// Calls `found` with slot and page within it for every entry that KVM has filled since the
    /// last call. They stay KVM's to overwrite no sooner than they are given back.
    pub(super) fn take(&mut self, mut found: impl FnMut(u32, u64)) {
        while self.held() < u64::from(self.len) {
            let entry = self.entry(self.taken);
            if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                break;
            }
            let slot = entry.slot.load(Ordering::Relaxed);
            found(slot, entry.offset.load(Ordering::Relaxed));
            self.taken = self.taken.wrapping_add(1);
        }
    }

    /// Entries taken and not given back.
    pub(super) fn held(&self) -> u64 {
        u64::from(self.taken.wrapping_sub(self.given_back))
    }

    /// Gives all that was taken back; how many. KVM takes them at KVM_RESET_DIRTY_RINGS.
    pub(super) fn give_back(&mut self) -> u64 {
        let count = self.held();
        while self.given_back != self.taken {
            let entry = self.entry(self.given_back);
            entry.flags.store(RESET, Ordering::Release);
            self.given_back = self.given_back.wrapping_add(1);
        }
        count
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.len as usize * ENTRY_BYTES;
        // SAFETY: mapped by `map` with this length, and unmapped once, here; no reference to an
        // entry outlives a call.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
