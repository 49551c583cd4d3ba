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
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::sync::Mutex;
use vmferry_memory::{GuestRam, RamRegion, for_each_run};
use vmferry_protocol::PageRange;

use crate::bits::PageBits;
use crate::{DirtyTracker, HarvestStats, TrackerError, TrackerKind, sys};

/// KVM's dirty log as a tracker. Memory slot numbers are RAM region indices.
#[derive(Debug)]
pub struct KvmLog {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    running: AtomicBool,
    /// Pages found written by the VMM that KVM's own log does not hold, until protected.
    vmm_written: Mutex<Vec<Vec<u64>>>,
    armed: PageBits,
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Kernel {
        kind: TrackerKind::KvmLog,
        what,
        source,
    }
}

fn words(region: &RamRegion) -> usize {
    region.range.count.div_ceil(64) as usize
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
        let armed = PageBits::new(&ram);
        let vmm_written = ram.regions().iter().map(|r| vec![0; words(r)]).collect();
        Ok(Self {
            vm,
            ram,
            running: AtomicBool::new(false),
            armed,
            vmm_written: Mutex::new(vmm_written),
        })
    }

    fn set_flags(&self, flags: u32) -> io::Result<()> {
        for (slot, region) in self.ram.regions().iter().enumerate() {
            let arg = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: region.range.gpa(),
                memory_size: region.range.bytes(),
                userspace_addr: region.hva as u64,
            };
            // SAFETY: the slot already maps exactly this region, which `self.ram` keeps mapped;
            // only its flags change.
            unsafe { self.vm.set_user_memory_region(arg) }?;
        }
        Ok(())
    }

    fn vmm_written(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u64>>> {
        // A panic while holding the lock cannot leave half a bit behind.
        self.vmm_written
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn collect_vmm_writes(&self, into: &mut [Vec<u64>]) {
        let ram = &self.ram;
        ram.take_vmm_writes(|run| {
            if let Ok(region) = ram.region_of(run) {
                let first = run.start - ram.regions()[region].range.start;
                set_bits(&mut into[region], first, run.count);
            }
        });
    }
}

impl DirtyTracker for KvmLog {
    fn kind(&self) -> TrackerKind {
        TrackerKind::KvmLog
    }

    fn start(&self) -> Result<(), TrackerError> {
        for bits in self.vmm_written().iter_mut() {
            bits.fill(0);
        }
        self.armed.clear_all();
        if let Err(error) = self.set_flags(KVM_MEM_LOG_DIRTY_PAGES) {
            let _ = self.set_flags(0);
            return Err(kernel("turning the dirty log on")(error));
        }
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        if !self.running.load(Ordering::Acquire) {
            return Err(TrackerError::NotStarted);
        }
        let mut by_vmm = self.vmm_written();
        self.collect_vmm_writes(&mut by_vmm);
        let mut dirty = Vec::with_capacity(by_vmm.len());
        for (slot, region) in self.ram.regions().iter().enumerate() {
            let mut log = self
                .vm
                .get_dirty_log(slot as u32, region.len())
                .map_err(|e| kernel("reading the dirty log")(e.into()))?;
            for (word, own) in log.iter_mut().zip(&by_vmm[slot]) {
                *word |= own;
            }
            dirty.push(log);
        }
        drop(by_vmm);
        let (mut pages, mut notifications) = (0, 0);
        self.ram.populated(|run| {
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
        clear_bits(&mut self.vmm_written()[region], first, range.count);
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
            && let Err(error) = self.set_flags(0)
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

fn each_word(first: u64, count: u64, mut f: impl FnMut(usize, u64)) {
    let mut at = first;
    let end = first + count;
    while at < end {
        let bit = at % 64;
        let n = (64 - bit).min(end - at);
        let mask = if n == 64 {
            u64::MAX
        } else {
            ((1 << n) - 1) << bit
        };
        f((at / 64) as usize, mask);
        at += n;
    }
}

fn set_bits(bits: &mut [u64], first: u64, count: u64) {
    each_word(first, count, |word, mask| bits[word] |= mask);
}

fn clear_bits(bits: &mut [u64], first: u64, count: u64) {
    each_word(first, count, |word, mask| bits[word] &= !mask);
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
    fn bit_ranges_that_cross_words_are_set_cleared_and_found() {
        let mut bits = vec![0; 4];
        set_bits(&mut bits, 60, 140);
        assert_eq!(bits.iter().map(|w| w.count_ones()).sum::<u32>(), 140);
        let mut runs = Vec::new();
        runs_within(&bits, 62, 70, |s, c| runs.push((s, c)));
        assert_eq!(runs, vec![(62, 70)]);
        clear_bits(&mut bits, 64, 64);
        runs.clear();
        runs_within(&bits, 0, 256, |s, c| runs.push((s, c)));
        assert_eq!(runs, vec![(60, 4), (128, 72)]);
    }
}
