//! One 2 MiB aligned anonymous mapping: the only place of this crate that maps or unmaps memory.

use std::io;
use std::ptr::NonNull;

use crate::HUGE_PAGE_SIZE;

/// An anonymous private mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory owned by this value; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: shared references only give out the address; access to the bytes is the user's matter.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (a multiple of 2 MiB), aligned to 2 MiB, and asks for huge pages.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let align = HUGE_PAGE_SIZE as usize;
        let padded = len
            .checked_add(align)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory
        // that anybody else uses.
        let raw = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                padded,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = raw as usize;
        let aligned = start.next_multiple_of(align);
        let head = aligned - start;
        let tail = align - head;
        // SAFETY: both cuts lie inside the mapping just made, to which no reference exists yet.
        unsafe {
            if head > 0 {
                libc::munmap(raw, head);
            }
            if tail > 0 {
                libc::munmap((aligned + len) as *mut libc::c_void, tail);
            }
        }
        let base = NonNull::new(aligned as *mut u8)
            .ok_or_else(|| io::Error::other("the kernel mapped memory at address 0"))?;
        let mapping = Self { base, len };
        // Huge pages are a wish: a kernel without them still gives correct RAM.
        let _ = mapping.advise(libc::MADV_HUGEPAGE);
        // A forked child (a helper program) must never see or copy guest RAM.
        mapping.advise(libc::MADV_DONTFORK)?;
        Ok(mapping)
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn addr(&self) -> usize {
        self.base.as_ptr() as usize
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this value's own mapping, and neither advice used changes content.
        let rc = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `anonymous` and is unmapped once, here; whoever keeps
        // addresses into it keeps the owner alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
