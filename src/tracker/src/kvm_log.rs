//! `kvm-log`: KVM's dirty log with manual protection, all bits set at the start.
//!
//! KVM write-protects a page when its bit is cleared, and sets the bit at the next write by a
//! vCPU (Documentation/virt/kvm/api.rst, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2). It does not see what
//! the VMM writes through its own mapping; that comes from the RAM's own bitmap. Bits of pages
//! that do not exist yet are never cleared, so such a page is dirty as soon as it exists.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmferry_memory::{GuestRam, for_each_run};
use vmferry_protocol::PageRange;
use vmferry_protocol::pages::each_word;

use crate::bits::PageBits;
use crate::{DirtyTracker, HarvestStats, TrackerError, TrackerKind, slots, sys};

/// KVM's dirty log as a tracker. Memory slot numbers are RAM region indices.
#[derive(Debug)]
pub struct KvmLog {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    running: AtomicBool,
    /// Pages found written by the VMM that KVM's own log does not hold, until protected.
    vmm_written: PageBits,
    armed: PageBits,
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Kernel {
        kind: TrackerKind::KvmLog,
        what,
        source,
    }
}

impl KvmLog {
    /// Prepares KVM's log for `vm`, whose memory slot `i` is region `i` of `ram`.
    ///
    /// # Errors
    /// [`TrackerError::Kernel`] where this KVM has no manual protection (Linux before 5.8).
    pub fn new(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Result<Self, TrackerError> {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [
                u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
                0,
                0,
                0,
            ],
            ..Default::default()
        };
        vm.enable_cap(&cap)
            .map_err(|e| kernel("enabling manual dirty log protection")(e.into()))?;
        Ok(Self {
            vm,
            running: AtomicBool::new(false),
            armed: PageBits::new(&ram),
            vmm_written: PageBits::new(&ram),
            ram,
        })
    }
}

impl DirtyTracker for KvmLog {
    fn kind(&self) -> TrackerKind {
        TrackerKind::KvmLog
    }

    fn start(&self) -> Result<(), TrackerError> {
        self.vmm_written.clear_all();
        self.armed.clear_all();
        if let Err(error) = slots::log_dirty_pages(&self.vm, &self.ram, true) {
            let _ = slots::log_dirty_pages(&self.vm, &self.ram, false);
            return Err(kernel("turning the dirty log on")(error));
        }
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        if !self.running.load(Ordering::Acquire) {
            return Err(TrackerError::NotStarted);
        }
        self.vmm_written.set_vmm_writes(&self.ram);
        let mut dirty = Vec::new();
        for (slot, region) in self.ram.regions().iter().enumerate() {
            let mut log = self
                .vm
                .get_dirty_log(slot as u32, region.len())
                .map_err(|e| kernel("reading the dirty log")(e.into()))?;
            self.vmm_written.each_set_run(region.range, |run| {
                set_bits(&mut log, run.start - region.range.start, run.count);
            })?;
            dirty.push(log);
        }
        let (mut pages, mut notifications) = (0, 0);
        self.ram.ever_populated(|run| {
            let Ok(region) = self.ram.region_of(run) else {
                return;
            };
            let base = self.ram.regions()[region].range.start;
            runs_within(
                &dirty[region],
                run.start - base,
                run.count,
                |first, count| {
                    let run = PageRange::new(base + first, count);
                    pages += count;
                    notifications += self.armed.clear(run).unwrap_or(0);
                    found(run);
                },
            );
        })?;
        Ok(HarvestStats {
            pages,
            notifications,
            ..HarvestStats::default()
        })
    }

    fn protect(&self, range: PageRange) -> Result<(), TrackerError> {
        let region = self.ram.region_of(range)?;
        let slot_pages = self.ram.regions()[region].range.count;
        let first = range.start - self.ram.regions()[region].range.start;
        let aligned = first & !63;
        let end = (first + range.count).next_multiple_of(64).min(slot_pages);
        let mut bits = vec![0; ((end - aligned).div_ceil(64)) as usize];
        set_bits(&mut bits, first - aligned, range.count);
        // The VMM's bits first: a write that comes between the two is noted anew in RAM's own
        // bitmap, as long as it is forgotten here before the page is read.
        self.armed.set(range)?;
        self.vmm_written.clear(range)?;
        sys::clear_dirty_log(
            &self.vm,
            region as u32,
            aligned,
            (end - aligned) as u32,
            &bits,
        )
        .map_err(kernel("clearing the dirty log"))
    }

    fn stop(&self) {
        if self.running.swap(false, Ordering::AcqRel)
            && let Err(error) = slots::log_dirty_pages(&self.vm, &self.ram, false)
        {
            // The guest goes on, only slower: there is nobody to give this to.
            tracing::warn!(%error, "the dirty log could not be turned off");
        }
    }
}

impl Drop for KvmLog {
    fn drop(&mut self) {
        self.stop();
    }
}

fn set_bits(bits: &mut [u64], first: u64, count: u64) {
    each_word(first, count, |word, mask| bits[word] |= mask);
}

/// Runs of set bits within `[first, first + count)`.
fn runs_within(bits: &[u64], first: u64, count: u64, mut found: impl FnMut(u64, u64)) {
    let aligned = first & !63;
    let mut part = Vec::with_capacity(count.div_ceil(64) as usize + 1);
    each_word(first, count, |word, mask| part.push(bits[word] & mask));
    for_each_run(&part, |start, n| found(aligned + start, n));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_ranges_that_cross_words_are_set_and_found() {
        let mut bits = vec![0; 4];
        set_bits(&mut bits, 60, 140);
        assert_eq!(bits.iter().map(|w| w.count_ones()).sum::<u32>(), 140);
        let mut runs = Vec::new();
        runs_within(&bits, 62, 70, |s, c| runs.push((s, c)));
        assert_eq!(runs, vec![(62, 70)]);
    }
}
