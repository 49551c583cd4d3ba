//! What a disk's register handler and its worker share: small, without locks.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::mmio::Live;

/// A used ring has something for the driver; the configuration has changed.
pub(super) const USED: u32 = 1;
pub(super) const CONFIG: u32 = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shared {
    /// Readable when there may be requests: the driver's notification.
    pub(super) kick: EventFd,
    /// Readable when there are commands for the worker.
    pub(super) wake: EventFd,
    /// Written to interrupt the guest, for KVM to see.
    pub(super) irq: EventFd,
    interrupts: AtomicU32,
    broken: AtomicBool,
    draining: AtomicBool,
}

impl Shared {
    pub(super) fn new() -> std::io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            kick: event()?,
            wake: event()?,
            irq: event()?,
            interrupts: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// Interrupts the guest, for `why`.
    pub(super) fn interrupt(&self, why: u32) {
        self.interrupts.fetch_or(why, Ordering::AcqRel);
        // Full only where nobody has read 2^64 - 2 interrupts.
        let _ = self.irq.write(1);
    }

    /// Once more, where the driver has not seen it: an interrupt on its way may have been lost
    /// with the former host.
    pub(super) fn repeat_interrupt(&self) {
        if self.interrupts.load(Ordering::Acquire) != 0 {
            let _ = self.irq.write(1);
        }
    }

    pub(super) fn acknowledge(&self, seen: u32) {
        self.interrupts.fetch_and(!seen, Ordering::AcqRel);
    }

    pub(super) fn set_interrupts(&self, interrupts: u32) {
        self.interrupts.store(interrupts, Ordering::Release);
    }

    pub(super) fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::Acquire)
    }

    /// The driver has broken a queue, or not (any more).
    pub(super) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::Release);
    }

    pub(super) fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The backend still has what a driver had asked for before it reset the device.
    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    /// What registers show; `status` is what the driver has set.
    pub(super) fn live(&self, status: u32) -> Live {
        let draining = status == 0 && self.draining.load(Ordering::Acquire);
        Live {
            interrupts: self.interrupts(),
            needs_reset: draining || self.broken(),
        }
    }
}
