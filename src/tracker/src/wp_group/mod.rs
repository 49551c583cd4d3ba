//! `wp-group`: userfaultfd write protection of whole groups of pages.
//!
//! The first write to a protected group makes all of it writable and perhaps dirty: one
//! notification for up to 8,192 pages, and huge mappings survive. It sees every writer (vCPUs, the VMM,
//! io_uring, KVM's own), as all go through the same page tables, but one: DMA into a page that was
//! pinned before it was protected. Whoever starts such DMA notes the page in RAM's own bitmap when
//! it is done. What is perhaps dirty is for whoever reads the pages to find out, by their content.
//!
//! Memory that the guest has never touched is left alone: protecting it would cost page tables and
//! its later huge pages. Pages that came into being count as written, as every page does that was
//! not read since it was protected. Needs Linux 5.7 (UFFD_FEATURE_PAGEFAULT_FLAG_WP;
//! Documentation/admin-guide/mm/userfaultfd.rst).

mod answers;
mod groups;
mod handler;
mod pace;
pub mod policy;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_memory::GuestRam;
use vmferry_protocol::PageRange;

use crate::sys::{UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_THREAD_ID, Uffd};
use crate::{
    DirtyTracker, HarvestStats, NotificationCosts, PassFacts, Throttle, TrackerError, TrackerKind,
};
use answers::Costs;
use groups::{ArmError, Groups};
use handler::{Handler, Shared, span};
use policy::{GroupSize, Order, SizeInput, next_order};

/// Group write protection as a tracker.
#[derive(Debug)]
pub struct WpGroup {
    ram: Arc<GuestRam>,
    size: Mutex<GroupSize>,
    groups: Arc<Groups>,
    costs: Arc<Costs>,
    /// Size of groups protected from now on.
    order: AtomicU8,
    active: Mutex<Option<Active>>,
}

#[derive(Debug)]
struct Active {
    handler: Handler,
    passes: u32,
    /// Costs at the last harvest.
    told: (u64, u64),
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Kernel {
        kind: TrackerKind::WpGroup,
        what,
        source,
    }
}

fn open() -> Result<Uffd, TrackerError> {
    Uffd::open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID).map_err(kernel(
        "opening userfaultfd with write protection (Linux 5.7; root, or access to \
         /dev/userfaultfd)",
    ))
}

/// Whether this kernel has what is needed, and permits it.
///
/// # Errors
/// [`TrackerError::Kernel`] where not.
pub fn probe() -> Result<(), TrackerError> {
    open().map(drop)
}

impl WpGroup {
    /// Checks that the kernel has what is needed.
    ///
    /// # Errors
    /// [`TrackerError::Kernel`] where it has not, or does not permit it.
    pub fn new(ram: Arc<GuestRam>, size: GroupSize) -> Result<Self, TrackerError> {
        probe()?;
        Ok(Self {
            groups: Arc::new(Groups::new(&ram)),
            costs: Arc::default(),
            order: AtomicU8::new(Order::HUGE.log2()),
            active: Mutex::new(None),
            ram,
            size: Mutex::new(size),
        })
    }

    fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self) -> GroupSize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self) -> Order {
        Order::from_log2(self.order.load(Ordering::Relaxed))
    }

    fn shared(&self) -> Result<Arc<Shared>, TrackerError> {
        let active = self.active();
        let active = active.as_ref().ok_or(TrackerError::NotStarted)?;
        Ok(active.handler.shared.clone())
    }
}

impl DirtyTracker for WpGroup {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WpGroup
    }

    fn start(&self) -> Result<(), TrackerError> {
        let uffd = open()?;
        for region in self.ram.regions() {
            uffd.register_wp(region.hva, region.len())
                .map_err(kernel("registering guest RAM"))?;
        }
        self.groups.reset();
        let order = match self.size() {
            GroupSize::Auto => Order::HUGE,
            GroupSize::Fixed(order) => order,
        };
        self.order.store(order.log2(), Ordering::Relaxed);
        let shared = Arc::new(Shared {
            ram: self.ram.clone(),
            uffd,
            groups: self.groups.clone(),
            costs: self.costs.clone(),
            grow: self.size() == GroupSize::Auto,
            throttle: Mutex::new(None),
            ending: AtomicBool::new(false),
        });
        self.costs.reset();
        *self.active() = Some(Active {
            handler: Handler::start(shared).map_err(kernel("starting the thread"))?,
            passes: 0,
            told: (0, 0),
        });
        Ok(())
    }

    fn harvest(&self, found: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        let mut active = self.active();
        let active = active.as_mut().ok_or(TrackerError::NotStarted)?;
        active.passes += 1;
        self.groups.begin_pass();
        self.ram.take_vmm_writes(|run| self.groups.note(run));
        let mut pages = 0;
        let mut wrong = None;
        self.ram.ever_populated(|run| {
            let each = |run: PageRange| {
                pages += run.count;
                found(run);
            };
            if let Err(error) = self.groups.written(run, each) {
                wrong = Some(error);
            }
        })?;
        if let Some(error) = wrong {
            return Err(error.into());
        }
        let faults = self.costs.faults.load(Ordering::Relaxed);
        let stall = self.costs.stall_ns.load(Ordering::Relaxed);
        let stats = HarvestStats {
            pages,
            notifications: faults - active.told.0,
            stall: Duration::from_nanos(stall - active.told.1),
        };
        active.told = (faults, stall);
        Ok(stats)
    }

    fn next_pass(&self, facts: &PassFacts) {
        if self.size() == GroupSize::Auto {
            let order = next_order(&SizeInput {
                pass: facts.pass,
                order: self.order(),
                pages: facts.pages,
                changed: facts.changed,
                read: facts.read,
                per_page: facts.per_page,
                budget: facts.budget,
            });
            self.order.store(order.log2(), Ordering::Relaxed);
        }
    }

    fn protect(&self, range: PageRange) -> Result<(), TrackerError> {
        let shared = self.shared()?;
        let region = &self.ram.regions()[self.ram.region_of(range)?];
        let protect = |group: PageRange| {
            let (start, len) = span(region, group);
            shared.uffd.write_protect(start, len)
        };
        match self.groups.arm(range, self.order(), protect) {
            Ok(()) => Ok(()),
            Err(ArmError::Memory(error)) => Err(error.into()),
            Err(ArmError::Kernel(error)) => Err(kernel("write-protecting a group")(error)),
        }
    }

    fn compares_content(&self) -> bool {
        true
    }

    fn set_group_size(&self, size: GroupSize) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
    }

    fn group_pages(&self) -> u64 {
        self.order().pages()
    }

    fn can_throttle(&self) -> bool {
        true
    }

    fn throttle(&self, throttle: Option<Throttle>) {
        if let Some(active) = self.active().as_ref() {
            active.handler.throttle(throttle);
        }
    }

    fn costs(&self) -> NotificationCosts {
        let ns = |n: &AtomicU64| Duration::from_nanos(n.load(Ordering::Relaxed));
        NotificationCosts {
            notifications: self.costs.faults.load(Ordering::Relaxed),
            pages: self.costs.pages.load(Ordering::Relaxed),
            stall: ns(&self.costs.stall_ns),
            longest: ns(&self.costs.longest_ns),
            throttled: ns(&self.costs.throttled_ns),
        }
    }

    fn stop(&self) {
        drop(self.active().take());
    }
}

impl Drop for WpGroup {
    fn drop(&mut self) {
        self.stop();
    }
}
