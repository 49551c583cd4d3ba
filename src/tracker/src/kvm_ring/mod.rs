//! `kvm-ring`: KVM's dirty rings, one for each vCPU.
//!
//! KVM write-protects every page when tracking starts, and appends a page to the writing vCPU's
//! ring when it is first written after that (Documentation/virt/kvm/api.rst,
//! KVM_CAP_DIRTY_LOG_RING). There is no bitmap to fetch, so harvesting costs in proportion to what
//! was written; the guest's cost is that of the dirty log, a fault for every page. What the VMM
//! writes through its own mapping comes from the RAM's own bitmap.
//!
//! Rings are a property of the machine, which has no dirty log then: see [`DirtyRings`].

mod mapping;
mod rings;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmferry_memory::GuestRam;
use vmferry_protocol::PageRange;

pub use rings::{DirtyRings, EXIT_RING_FULL, RING_ENTRIES, RingsEnabled};

use crate::{DirtyTracker, HarvestStats, TrackerError, TrackerKind};

/// KVM's dirty rings as a tracker.
#[derive(Debug)]
pub struct KvmRing {
    ram: Arc<GuestRam>,
    rings: Arc<DirtyRings>,
    running: AtomicBool,
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Kernel {
        kind: TrackerKind::KvmRing,
        what,
        source,
    }
}

impl KvmRing {
    /// By `rings`, which are of the VM that has `ram`.
    #[must_use]
    pub fn new(rings: Arc<DirtyRings>, ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            rings,
            running: AtomicBool::new(false),
        }
    }

    fn must_run(&self) -> Result<(), TrackerError> {
        match self.running.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(TrackerError::NotStarted),
        }
    }
}

impl DirtyTracker for KvmRing {
    fn kind(&self) -> TrackerKind {
        TrackerKind::KvmRing
    }

    fn start(&self) -> Result<(), TrackerError> {
        let started = self.rings.start();
        started.map_err(kernel("turning the dirty log on"))?;
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        self.must_run()?;
        let notifications = self.rings.collect();
        let written = self.rings.written();
        written.set_vmm_writes(&self.ram);
        let mut pages = 0;
        let mut wrong = None;
        self.ram.ever_populated(|run| {
            let each = |run: PageRange| {
                pages += run.count;
                found(run);
            };
            if let Err(error) = written.each_set_run(run, each) {
                wrong = Some(error);
            }
        })?;
        if let Some(error) = wrong {
            return Err(error.into());
        }
        Ok(HarvestStats {
            pages,
            notifications,
            ..HarvestStats::default()
        })
    }

    fn protect(&self, range: PageRange) -> Result<(), TrackerError> {
        self.must_run()?;
        self.ram.region_of(range)?;
        self.rings
            .protect(range)
            .map_err(kernel("giving dirty ring entries back"))
    }

    fn stop(&self) {
        if self.running.swap(false, Ordering::AcqRel)
            && let Err(error) = self.rings.stop()
        {
            // The guest goes on, only slower: there is nobody to give this to.
            tracing::warn!(%error, "the dirty rings could not be turned off");
        }
    }
}

impl Drop for KvmRing {
    fn drop(&mut self) {
        self.stop();
    }
}
