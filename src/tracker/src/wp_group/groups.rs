//! What `wp-group` knows of every page, and what a write to one of them releases. No kernel here:
//! the caller protects and releases what it is told to, inside the call.
//!
//! Four bits a page. *Armed*: its content was read after it was protected, and nothing has been
//! written since; every other page counts as written. *Protected*: as the kernel was told last.
//! *Released*: by a write, since it was protected. *Tried*: its group was protected in this pass. A group that was written after it was protected
//! is not protected again in the same pass: it will be read once more anyway, and the guest would
//! pay once more for nothing.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_memory::{GuestRam, HUGE_PAGE_SIZE, MemoryError, RamRegion};
use vmferry_protocol::{PAGE_SIZE, PageRange};

use crate::bits::PageBits;
use crate::wp_group::policy::{MAX_ORDER, Order};

/// Pages of a block, for each of which a group size is kept: a huge page.
const BLOCK: u64 = HUGE_PAGE_SIZE / PAGE_SIZE;

/// What is known of every page.
#[derive(Debug)]
pub(crate) struct Groups {
    armed: PageBits,
    protected: PageBits,
    released: PageBits,
    tried: PageBits,
    /// Nobody answers faults any more: nothing may be armed.
    lost: AtomicBool,
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    range: PageRange,
    /// Group size of each block, as a power of two of pages, as it was protected last.
    orders: Vec<AtomicU8>,
    /// For every span of the largest group: held while bits and kernel are brought in line.
    locks: Vec<Mutex<()>>,
}

impl Region {
    fn new(region: &RamRegion) -> Self {
        let n = region.range.count;
        Self {
            range: region.range,
            orders: (0..n.div_ceil(BLOCK)).map(|_| AtomicU8::new(0)).collect(),
            locks: (0..n.div_ceil(1 << MAX_ORDER))
                .map(|_| Mutex::new(()))
                .collect(),
        }
    }

    /// The group of `order` that page `at` (from the region's beginning) lies in, cut to the
    /// region.
    fn group(&self, at: u64, order: Order) -> PageRange {
        let start = at & !(order.pages() - 1);
        let count = order.pages().min(self.range.count - start);
        PageRange::new(self.range.start + start, count)
    }

    fn lock(&self, at: u64) -> MutexGuard<'_, ()> {
        // A panic while it was held leaves bits that say "written" too often, never too seldom.
        self.locks[(at >> MAX_ORDER) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self, group: PageRange) -> &[AtomicU8] {
        let first = (group.start - self.range.start) / BLOCK;
        let last = (group.end() - self.range.start).div_ceil(BLOCK);
        &self.orders[first as usize..last as usize]
    }
}

impl Groups {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self {
            armed: PageBits::new(ram),
            protected: PageBits::new(ram),
            released: PageBits::new(ram),
            tried: PageBits::new(ram),
            lost: AtomicBool::new(false),
            regions: ram.regions().iter().map(Region::new).collect(),
        }
    }

    /// Every page counts as written, and as not protected.
    pub(crate) fn reset(&self) {
        self.armed.clear_all();
        self.protected.clear_all();
        self.released.clear_all();
        self.tried.clear_all();
        self.lost.store(false, Ordering::Release);
    }

    /// Nothing is known any more: every page counts as written, for good.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// A new pass begins; nobody protects meanwhile.
    pub(crate) fn begin_pass(&self) {
        self.tried.clear_all();
    }

    /// `pages` were written, perhaps by somebody who raises no fault.
    pub(crate) fn note(&self, pages: PageRange) {
        // What is written is RAM, and so has bits.
        let _ = self.armed.clear(pages);
    }

    /// Calls `found` for every run of `pages`, which exist, that counts as written.
    pub(crate) fn written(
        &self,
        pages: PageRange,
        mut found: impl FnMut(PageRange),
    ) -> Result<(), MemoryError> {
        if self.lost.load(Ordering::Acquire) {
            found(pages);
            return Ok(());
        }
        self.armed.each_clear_run(pages, found)
    }

    /// The pages of `range`, which exist, are about to be read: calls `protect` for each group of
    /// size `order` among them that is to be protected first, and arms those that then are.
    ///
    /// # Errors
    /// That of `protect`; the pages of that group then count as written.
    pub(crate) fn arm(
        &self,
        range: PageRange,
        order: Order,
        mut protect: impl FnMut(PageRange) -> io::Result<()>,
    ) -> Result<(), ArmError> {
        if self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let region = self.region(range)?;
        let mut at = range.start;
        while at < range.end() {
            let offset = at - region.range.start;
            let _held = region.lock(offset);
            let group = region.group(offset, order);
            let here = PageRange::new(at, group.end().min(range.end()) - at);
            if self.tried.count(here)? < here.count {
                self.tried.set(group)?;
                self.protected.set(group)?;
                self.released.clear(group)?;
                self.armed.set(here)?;
                for block in region.blocks(group) {
                    block.store(order.log2(), Ordering::Release);
                }
                if let Err(error) = protect(group) {
                    self.armed.clear(group)?;
                    self.protected.clear(group)?;
                    return Err(ArmError::Kernel(error));
                }
            } else if self.protected.count(here)? == here.count {
                self.armed.set(here)?;
            }
            at = here.end();
        }
        Ok(())
    }

    /// The group that `page` was protected with last.
    pub(crate) fn group(&self, page: PageRange) -> Result<PageRange, MemoryError> {
        let region = self.region(page)?;
        let offset = page.start - region.range.start;
        let order = region.orders[(offset / BLOCK) as usize].load(Ordering::Acquire);
        Ok(region.group(offset, Order::from_log2(order)))
    }

    /// Pages of `group` that a write to `page`, which lies in it, would release; none where that
    /// is writable already.
    pub(crate) fn price(&self, page: PageRange, group: PageRange) -> Result<u64, MemoryError> {
        match self.protected.count(page)? {
            0 => Ok(0),
            _ => self.protected.count(group),
        }
    }

    /// `page`, which lies in `group`, is being written: all of `group` counts as written from here
    /// on, then `lift` takes its protection off. With `grow`, a group beside pages that were
    /// released before takes twice as many along: a guest that has written those will go on here.
    /// Where `page` is writable already, as far as is known, `lift` is called for it alone, so
    /// that its writer cannot but go on.
    ///
    /// # Errors
    /// That of `lift`.
    pub(crate) fn release(
        &self,
        page: PageRange,
        group: PageRange,
        grow: bool,
        lift: impl FnOnce(PageRange) -> io::Result<()>,
    ) -> Result<Released, ArmError> {
        let region = self.region(page)?;
        let _held = region.lock(page.start - region.range.start);
        let range = if self.protected.count(page)? == 0 {
            page
        } else if grow {
            self.grown(region, group)?
        } else {
            group
        };
        self.armed.clear(range)?;
        let pages = self.protected.clear(range)?;
        self.released.set(range)?;
        lift(range).map_err(ArmError::Kernel)?;
        Ok(Released { range, pages })
    }

    /// `group` with what follows it, or what is before it, in the direction of the writer.
    fn grown(&self, region: &Region, group: PageRange) -> Result<PageRange, MemoryError> {
        // Not beyond what the lock covers.
        let span = region.group(
            group.start - region.range.start,
            Order::from_log2(MAX_ORDER),
        );
        let before = self.released_run(region, group, |n| group.start.checked_sub(n))?;
        if before > 0 {
            let count = (2 * before).max(group.count).min(span.end() - group.start);
            return Ok(PageRange::new(group.start, count));
        }
        let after = self.released_run(region, group, |_| Some(group.end()))?;
        if after > 0 {
            let count = (2 * after).max(group.count).min(group.end() - span.start);
            return Ok(PageRange::new(group.end() - count, count));
        }
        Ok(group)
    }

    /// How many pages beside `group` were all released: it, or twice, four times … as many. The
    /// first of `n` pages is `start(n)`.
    fn released_run(
        &self,
        region: &Region,
        group: PageRange,
        start: impl Fn(u64) -> Option<u64>,
    ) -> Result<u64, MemoryError> {
        let (mut run, mut n) = (0, group.count);
        while n <= 1 << MAX_ORDER
            && let Some(beside) = start(n).map(|from| PageRange::new(from, n))
            && region.range.covers(&beside)
            && self.released.count(beside)? == n
        {
            (run, n) = (n, 2 * n);
        }
        Ok(run)
    }

    fn region(&self, range: PageRange) -> Result<&Region, MemoryError> {
        self.regions
            .iter()
            .find(|r| range.count > 0 && r.range.covers(&range))
            .ok_or(MemoryError::OutOfRange {
                start: range.start,
                count: range.count,
            })
    }
}

/// What a write has released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released {
    /// The page written, and what was released with it.
    pub(crate) range: PageRange,
    /// Pages among them that were protected.
    pub(crate) pages: u64,
}

/// Why pages could not be armed or released.
#[derive(Debug)]
pub(crate) enum ArmError {
    /// Not RAM.
    Memory(MemoryError),
    /// The kernel refused.
    Kernel(io::Error),
}

impl From<MemoryError> for ArmError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
