//! [`DirtyRings`]: what a VM's vCPUs tell of pages written, gathered for one tracker.
//!
//! The machine makes it, as rings are enabled before there is a vCPU, and makes room in it when
//! a ring is full; the tracker switches it on and off. It does not read pages.
//!
//! Two bits for a page. *Written*: since it was protected for the tracker. *Writable*: an entry of
//! it was taken, so KVM lets it be written without telling again. Rings are given back from their
//! oldest entry on, which protects all such pages: that happens once a pass, before the first of
//! them is read, and where a ring is full. Later in a pass it is done only where few pages but
//! those about to be read would cost the guest a notification for nothing; else what is writable
//! stays in the next harvest, written again or not.
//!
//! No write is missed: entries are taken, given back and bits cleared under one lock, and KVM
//! makes an entry no later than a vCPU leaves the fault. So where a page's *written* bit is clear,
//! it either is protected, or its entry is yet to be taken.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use vmferry_memory::GuestRam;
use vmferry_protocol::PageRange;

use super::mapping::{ENTRY_BYTES, Ring};
use crate::bits::PageBits;
use crate::{slots, sys};

/// Entries of a ring, where KVM has no lower limit: 1 MiB for a vCPU, and an exit for 256 MiB
/// written page by page.
pub const RING_ENTRIES: u32 = 1 << 16;
/// KVM_RUN's exit reason when a ring is full: then [`DirtyRings::make_room`], and on.
pub const EXIT_RING_FULL: u32 = kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
/// How often KVM is asked to take entries that it takes none of.
const ASK_AGAIN: u32 = 1000;

/// A VM whose vCPUs will have rings.
#[derive(Debug)]
pub struct RingsEnabled {
    entries: u32,
}

/// The dirty rings of a VM. See the module's documentation.
#[derive(Debug)]
pub struct DirtyRings {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    inner: Mutex<Inner>,
    written: PageBits,
}

#[derive(Debug)]
struct Inner {
    rings: Vec<Ring>,
    writable: PageBits,
    /// Entries given back that KVM has yet to take.
    owed: u64,
    logging: bool,
    /// A pass has begun, and the rings have not been given back in it.
    pass_begins: bool,
    /// Pages that became writable, since this was last asked.
    notifications: u64,
}

impl RingsEnabled {
    /// Has the vCPUs of `vm`, which has none yet, get rings of `entries` entries (a power of two
    /// from 1,024), or as many as KVM allows. The VM has no dirty log then.
    ///
    /// # Errors
    /// KVM's; [`io::ErrorKind::Unsupported`] where it has no rings (Linux before 5.11).
    pub fn enable(vm: &VmFd, entries: u32) -> io::Result<Self> {
        let caps = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING];
        let (cap, most) = caps
            .into_iter()
            .map(|cap| (cap, vm.check_extension_raw(cap.into())))
            .find(|&(_, bytes)| bytes > 0)
            .ok_or(io::ErrorKind::Unsupported)?;
        let entries = entries.min(most as u32 / ENTRY_BYTES as u32);
        let arg = kvm_enable_cap {
            cap,
            args: [u64::from(entries) * ENTRY_BYTES as u64, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&arg)?;
        Ok(Self { entries })
    }

    /// The rings of `vcpus`: all that `vm` has, whose slot `i` is region `i` of `ram`.
    ///
    /// # Errors
    /// The kernel's, where it does not map them.
    pub fn map<'a>(
        self,
        vm: Arc<VmFd>,
        ram: Arc<GuestRam>,
        vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    ) -> io::Result<Arc<DirtyRings>> {
        let rings = vcpus
            .into_iter()
            .map(|vcpu| Ring::map(vcpu, self.entries))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(DirtyRings {
            inner: Mutex::new(Inner {
                rings,
                writable: PageBits::new(&ram),
                owed: 0,
                logging: false,
                pass_begins: true,
                notifications: 0,
            }),
            written: PageBits::new(&ram),
            vm,
            ram,
        }))
    }
}

impl DirtyRings {
    /// For a vCPU's thread that KVM told of a full ring. Waits for no vCPU and no tracker.
    ///
    /// # Errors
    /// KVM's; the vCPU cannot go on then.
    pub fn make_room(&self) -> io::Result<()> {
        let mut inner = self.inner();
        self.take(&mut inner);
        self.give_back(&mut inner)
    }

    /// Pages written, for the tracker to read and add to.
    pub(super) fn written(&self) -> &PageBits {
        &self.written
    }

    /// Logs from here on; every page is protected and counts as written.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.logging {
            self.switch(&mut inner, false)?;
        }
        self.take(&mut inner);
        self.give_back(&mut inner)?;
        self.switch(&mut inner, true)?;
        inner.notifications = 0;
        Ok(())
    }

    /// Logs no longer, and empties the rings.
    pub(super) fn stop(&self) -> io::Result<()> {
        let mut inner = self.inner();
        self.switch(&mut inner, false)?;
        self.take(&mut inner);
        self.give_back(&mut inner)
    }

    /// A pass begins: takes what the rings hold; how many pages became writable since this was
    /// last called.
    pub(super) fn collect(&self) -> u64 {
        let mut inner = self.inner();
        self.take(&mut inner);
        inner.pass_begins = true;
        std::mem::take(&mut inner.notifications)
    }

    /// What is written of `range` from here on has an entry, or counts as written already.
    ///
    /// # Errors
    /// KVM's; nothing counts as unwritten then that did not.
    pub(super) fn protect(&self, range: PageRange) -> io::Result<()> {
        let mut inner = self.inner();
        self.take(&mut inner);
        let writable = inner.writable.count(range).map_err(io::Error::other)?;
        let all: u64 = inner.rings.iter().map(Ring::held).sum();
        if writable > 0 && (inner.pass_begins || all / 2 <= writable) {
            self.give_back(&mut inner)?;
            inner.pass_begins = false;
        }
        let protected = |run| {
            // A part of a range that has bits.
            let _ = self.written.clear(run);
        };
        let unwritten = inner.writable.each_clear_run(range, protected);
        unwritten.map_err(io::Error::other)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Indices and bits go forward one by one: a panic leaves them as of one entry or the next.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, inner: &mut Inner) {
        let regions = self.ram.regions();
        let Inner {
            rings,
            writable,
            notifications,
            ..
        } = inner;
        for ring in rings {
            ring.take(|slot, offset| {
                let Some(region) = regions.get(slot as usize) else {
                    return;
                };
                let page = PageRange::new(region.range.start.saturating_add(offset), 1);
                // KVM names pages of the slot only, and these have bits. It names a page again
                // where it was written by KVM itself, or by two vCPUs at once.
                if writable.count(page).is_ok_and(|n| n == 0) {
                    *notifications += 1;
                    let _ = writable.set(page);
                }
                let _ = self.written.set(page);
            });
        }
    }

    /// Gives all entries taken back: KVM protects their pages, and tells of writes anew.
    fn give_back(&self, inner: &mut Inner) -> io::Result<()> {
        inner.owed += inner.rings.iter_mut().map(Ring::give_back).sum::<u64>();
        if inner.owed == 0 {
            return Ok(());
        }
        let mut asked = 0;
        loop {
            let taken = sys::reset_dirty_rings(&self.vm)?;
            inner.owed = inner.owed.saturating_sub(taken);
            asked += 1;
            match inner.owed {
                0 => break,
                _ if asked == ASK_AGAIN => return Err(io::ErrorKind::TimedOut.into()),
                _ => {}
            }
        }
        if asked > 1 && inner.logging {
            // Interrupted, KVM (Linux 6.16 and later) frees entries whose pages it did not
            // protect, and does not tell which. Protecting all of them anew is what is left.
            self.switch(inner, false)?;
            return self.switch(inner, true);
        }
        inner.writable.clear_all();
        Ok(())
    }

    /// Logging on protects every page; all count as written, as some may have been meanwhile.
    fn switch(&self, inner: &mut Inner, on: bool) -> io::Result<()> {
        let switched = slots::log_dirty_pages(&self.vm, &self.ram, on);
        inner.logging = on && switched.is_ok();
        if on {
            if switched.is_err() {
                let _ = slots::log_dirty_pages(&self.vm, &self.ram, false);
            }
            inner.writable.clear_all();
            self.written.set_all();
        }
        switched
    }
}
