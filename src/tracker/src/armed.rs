//! Which pages are protected, so that what a write to them cost the guest is counted once.

use std::sync::atomic::{AtomicU64, Ordering};

use vmferry_memory::{GuestRam, MemoryError};
use vmferry_protocol::PageRange;

/// A bit for each page of RAM: protected, and not seen written since.
#[derive(Debug)]
pub(crate) struct Armed {
    /// First page and words of each region.
    regions: Vec<(PageRange, Vec<AtomicU64>)>,
}

impl Armed {
    /// No page is protected.
    pub(crate) fn new(ram: &GuestRam) -> Self {
        let words = |pages: u64| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let regions = ram.regions().iter();
        Self {
            regions: regions.map(|r| (r.range, words(r.range.count))).collect(),
        }
    }

    /// No page is protected any more.
    pub(crate) fn clear(&self) {
        for word in self.regions.iter().flat_map(|(_, words)| words) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The pages of `range`, which lies in one region, are protected.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub(crate) fn arm(&self, range: PageRange) -> Result<(), MemoryError> {
        self.each_word(range, |word, mask| {
            word.fetch_or(mask, Ordering::Relaxed);
        })
    }

    /// The pages of `range` were found written: how many of them were protected until then.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub(crate) fn fired(&self, range: PageRange) -> Result<u64, MemoryError> {
        let mut fired = 0;
        self.each_word(range, |word, mask| {
            let before = word.fetch_and(!mask, Ordering::Relaxed);
            fired += u64::from((before & mask).count_ones());
        })?;
        Ok(fired)
    }

    fn each_word(
        &self,
        range: PageRange,
        mut f: impl FnMut(&AtomicU64, u64),
    ) -> Result<(), MemoryError> {
        let (region, words) = self
            .regions
            .iter()
            .find(|(region, _)| range.count > 0 && region.covers(&range))
            .ok_or(MemoryError::OutOfRange {
                start: range.start,
                count: range.count,
            })?;
        let mut at = range.start - region.start;
        let end = at + range.count;
        while at < end {
            let bit = at % 64;
            let n = (64 - bit).min(end - at);
            f(&words[(at / 64) as usize], (u64::MAX >> (64 - n)) << bit);
            at += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protected_page_fires_once() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let armed = Armed::new(&ram);
        assert_eq!(armed.fired(PageRange::new(0, 512)).unwrap(), 0);
        armed.arm(PageRange::new(60, 70)).unwrap();
        assert_eq!(armed.fired(PageRange::new(0, 64)).unwrap(), 4);
        assert_eq!(armed.fired(PageRange::new(0, 512)).unwrap(), 66);
        armed.arm(PageRange::new(0, 512)).unwrap();
        armed.clear();
        assert_eq!(armed.fired(PageRange::new(0, 512)).unwrap(), 0);
        assert!(armed.arm(PageRange::new(512, 1)).is_err());
        assert!(armed.arm(PageRange::new(u64::MAX, u64::MAX)).is_err());
    }
}
