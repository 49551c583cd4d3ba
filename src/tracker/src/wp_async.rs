//! `wp-async`: userfaultfd write protection in which the kernel lifts the protection by itself.
//!
//! Works on any mapping, with or without KVM, and sees every writer (vCPUs, the VMM, io_uring),
//! as all go through the same page tables; DMA into pages that were pinned before they were
//! protected is noted in RAM's own bitmap, and such pages are unprotected before the scan. The kernel splits huge pages that are written while
//! protected, page by page, so this is not the tracker for a guest's speed. Needs Linux 6.7
//! (UFFD_FEATURE_WP_ASYNC, PAGEMAP_SCAN; Documentation/admin-guide/mm/userfaultfd.rst).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmferry_memory::pagemap::{Pagemap, Query};
use vmferry_memory::{GuestRam, range_at};
use vmferry_protocol::PageRange;

use crate::bits::PageBits;
use crate::sys::{UFFD_FEATURE_WP_ASYNC, Uffd};
use crate::{DirtyTracker, HarvestStats, TrackerError, TrackerKind};

/// Asynchronous userfaultfd write protection as a tracker.
#[derive(Debug)]
pub struct WpAsync {
    ram: Arc<GuestRam>,
    pagemap: Pagemap,
    armed: PageBits,
    active: Mutex<Option<Arc<Uffd>>>,
    /// Opens userfaultfd with these features.
    open: fn(u64) -> io::Result<Uffd>,
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Kernel {
        kind: TrackerKind::WpAsync,
        what,
        source,
    }
}

impl WpAsync {
    /// Checks that the kernel has what is needed.
    ///
    /// # Errors
    /// [`TrackerError::Kernel`] where it has not, or does not permit it.
    pub fn new(ram: Arc<GuestRam>) -> Result<Self, TrackerError> {
        Self::with(ram, Uffd::open_unanswered)
    }

    fn with(ram: Arc<GuestRam>, open: fn(u64) -> io::Result<Uffd>) -> Result<Self, TrackerError> {
        let pagemap = Pagemap::open().map_err(kernel("opening /proc/self/pagemap"))?;
        let tracker = Self {
            armed: PageBits::new(&ram),
            ram,
            pagemap,
            active: Mutex::new(None),
            open,
        };
        tracker.open()?;
        Ok(tracker)
    }

    fn open(&self) -> Result<Uffd, TrackerError> {
        (self.open)(UFFD_FEATURE_WP_ASYNC).map_err(kernel(
            "opening userfaultfd with asynchronous write protection (Linux 6.7)",
        ))
    }

    fn active(&self) -> MutexGuard<'_, Option<Arc<Uffd>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirtyTracker for WpAsync {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WpAsync
    }

    fn start(&self) -> Result<(), TrackerError> {
        // A fresh descriptor: pages count as written until they are protected through it.
        let uffd = self.open()?;
        for region in self.ram.regions() {
            uffd.register_wp(region.hva, region.len())
                .map_err(kernel("registering guest RAM"))?;
        }
        self.armed.clear_all();
        *self.active() = Some(Arc::new(uffd));
        Ok(())
    }

    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        let guard = self.active();
        let uffd = guard.as_ref().ok_or(TrackerError::NotStarted)?;
        let mut noted = Ok(());
        self.ram.take_vmm_writes(|run| {
            let released = self
                .ram
                .hva(run)
                .map_err(TrackerError::from)
                .and_then(|hva| {
                    uffd.release(hva, run.bytes() as usize)
                        .map_err(kernel("taking write protection off"))
                });
            if released.is_err() {
                noted = released;
            }
        });
        noted?;
        let (mut pages, mut notifications) = (0, 0);
        for region in self.ram.regions() {
            self.pagemap
                .scan(
                    region.hva,
                    region.hva + region.len(),
                    Query::WRITTEN,
                    |from, to| {
                        let run = range_at(region, from, to);
                        pages += run.count;
                        notifications += self.armed.clear(run).unwrap_or(0);
                        found(run);
                    },
                )
                .map_err(kernel("scanning for written pages"))?;
        }
        Ok(HarvestStats {
            pages,
            notifications,
            ..HarvestStats::default()
        })
    }

    fn protect(&self, range: PageRange) -> Result<(), TrackerError> {
        let hva = self.ram.hva(range)?;
        let uffd = self.active().clone().ok_or(TrackerError::NotStarted)?;
        // Before the kernel knows: a write must never find it protected and not armed.
        self.armed.set(range)?;
        uffd.write_protect(hva, range.bytes() as usize)
            .map_err(kernel("write-protecting pages"))
    }

    fn stop(&self) {
        if let Some(uffd) = self.active().take() {
            for region in self.ram.regions() {
                if let Err(error) = uffd.unregister(region.hva, region.len()) {
                    tracing::warn!(%error, "write protection could not be taken off");
                }
            }
        }
    }
}

impl Drop for WpAsync {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use vmferry_protocol::PAGE_SIZE;

    use super::*;

    /// A descriptor that everybody may open hears of no fault of the kernel's own; that the kernel
    /// lifts protection by itself does not depend on it.
    #[test]
    fn writes_of_the_kernel_are_found_without_permission_to_answer_faults() {
        let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
        let write = |gfn, what| {
            let page = [what; PAGE_SIZE as usize];
            ram.copy_in(PageRange::new(gfn, 1), &page).unwrap();
        };
        (0..ram.bytes() / PAGE_SIZE).for_each(|gfn| write(gfn, 1));
        let tracker = WpAsync::with(ram.clone(), Uffd::open_user_mode).unwrap();
        tracker.start().unwrap();
        let pages = PageRange::new(0, ram.bytes() / PAGE_SIZE);
        let harvest = || {
            let mut found = Vec::new();
            tracker
                .harvest(&mut |run| found.extend(run.frames()))
                .unwrap();
            found
        };
        assert_eq!(harvest().len() as u64, pages.count);
        tracker.protect(pages).unwrap();
        assert_eq!(harvest(), [0u64; 0]);
        let (mut from, mut to) = io::pipe().unwrap();
        to.write_all(&[7; 64]).unwrap();
        let place = ram.hva(PageRange::new(5, 1)).unwrap() as *mut u8;
        // SAFETY: guest RAM, which nobody else uses here.
        let place = unsafe { std::slice::from_raw_parts_mut(place, 64) };
        from.read_exact(place).unwrap();
        write(9, 2);
        assert_eq!(harvest(), [5, 9]);
    }
}
