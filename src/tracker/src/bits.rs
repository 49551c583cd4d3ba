//! A bit for each page of RAM, set and cleared by any number of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use vmferry_memory::{GuestRam, MemoryError, for_each_run};
use vmferry_protocol::PageRange;
use vmferry_protocol::pages::each_word;

/// A bitmap over the pages of RAM: 32 KiB for a GiB. Calls that take a range need it to lie in
/// one region.
#[derive(Debug)]
pub(crate) struct PageBits {
    regions: Vec<(PageRange, Vec<AtomicU64>)>,
}

impl PageBits {
    /// No bit is set.
    pub(crate) fn new(ram: &GuestRam) -> Self {
        let words = |pages: u64| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let regions = ram.regions().iter();
        Self {
            regions: regions.map(|r| (r.range, words(r.range.count))).collect(),
        }
    }

    /// Clears every bit.
    pub(crate) fn clear_all(&self) {
        for word in self.regions.iter().flat_map(|(_, words)| words) {
            word.store(0, Ordering::Release);
        }
    }

    /// Sets every bit.
    pub(crate) fn set_all(&self) {
        for (range, _) in &self.regions {
            // A region's own range lies in it.
            let _ = self.set(*range);
        }
    }

    /// Sets the bits of `range`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], as all calls here.
    pub(crate) fn set(&self, range: PageRange) -> Result<(), MemoryError> {
        self.each_word(range, |word, mask| {
            word.fetch_or(mask, Ordering::AcqRel);
        })
    }

    /// Sets the bits of the pages that the VMM itself wrote since this was last asked of `ram`,
    /// for trackers of KVM's, which do not see those.
    pub(crate) fn set_vmm_writes(&self, ram: &GuestRam) {
        ram.take_vmm_writes(|run| {
            // What is written is RAM, and so has bits.
            let _ = self.set(run);
        });
    }

    /// Clears the bits of `range`; how many were set.
    pub(crate) fn clear(&self, range: PageRange) -> Result<u64, MemoryError> {
        let mut cleared = 0;
        self.each_word(range, |word, mask| {
            let before = word.fetch_and(!mask, Ordering::AcqRel);
            cleared += u64::from((before & mask).count_ones());
        })?;
        Ok(cleared)
    }

    /// How many bits of `range` are set.
    pub(crate) fn count(&self, range: PageRange) -> Result<u64, MemoryError> {
        let mut set = 0;
        self.each_word(range, |word, mask| {
            set += u64::from((word.load(Ordering::Acquire) & mask).count_ones());
        })?;
        Ok(set)
    }

    /// Calls `found` for every run of clear bits in `range`, ascending.
    pub(crate) fn each_clear_run(
        &self,
        range: PageRange,
        found: impl FnMut(PageRange),
    ) -> Result<(), MemoryError> {
        self.each_run(range, |word| !word, found)
    }

    /// Calls `found` for every run of set bits in `range`, ascending.
    pub(crate) fn each_set_run(
        &self,
        range: PageRange,
        found: impl FnMut(PageRange),
    ) -> Result<(), MemoryError> {
        self.each_run(range, |word| word, found)
    }

    fn each_run(
        &self,
        range: PageRange,
        of: impl Fn(u64) -> u64,
        mut found: impl FnMut(PageRange),
    ) -> Result<(), MemoryError> {
        let mut bits = Vec::with_capacity(range.count.div_ceil(64) as usize + 1);
        self.each_word(range, |word, mask| {
            bits.push(of(word.load(Ordering::Acquire)) & mask);
        })?;
        let (region, _) = self.region(range)?;
        let first_word = (range.start - region.start) & !63;
        for_each_run(&bits, |start, count| {
            found(PageRange::new(region.start + first_word + start, count));
        });
        Ok(())
    }

    fn region(&self, range: PageRange) -> Result<&(PageRange, Vec<AtomicU64>), MemoryError> {
        self.regions
            .iter()
            .find(|(region, _)| range.count > 0 && region.covers(&range))
            .ok_or(MemoryError::OutOfRange {
                start: range.start,
                count: range.count,
            })
    }

    fn each_word(
        &self,
        range: PageRange,
        mut f: impl FnMut(&AtomicU64, u64),
    ) -> Result<(), MemoryError> {
        let (region, words) = self.region(range)?;
        each_word(range.start - region.start, range.count, |word, mask| {
            f(&words[word], mask);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_cross_words_are_set_counted_and_cleared() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let bits = PageBits::new(&ram);
        let all = PageRange::new(0, 512);
        assert_eq!(bits.clear(all).unwrap(), 0);
        bits.set(PageRange::new(60, 70)).unwrap();
        assert_eq!(bits.count(all).unwrap(), 70);
        assert_eq!(bits.clear(PageRange::new(0, 64)).unwrap(), 4);
        assert_eq!(bits.clear(all).unwrap(), 66);
        bits.set_all();
        assert_eq!(bits.count(all).unwrap(), 512);
        bits.clear_all();
        assert_eq!(bits.count(all).unwrap(), 0);
    }

    #[test]
    fn runs_of_bits_are_found_within_a_range() {
        let ram = GuestRam::new((3 << 30) + (4 << 20)).unwrap();
        let bits = PageBits::new(&ram);
        let base = 1 << 20;
        bits.set(PageRange::new(base + 70, 10)).unwrap();
        let mut runs = Vec::new();
        bits.each_clear_run(PageRange::new(base + 65, 100), |r| runs.push(r))
            .unwrap();
        assert_eq!(
            runs,
            [PageRange::new(base + 65, 5), PageRange::new(base + 80, 85)]
        );
        runs.clear();
        bits.each_set_run(PageRange::new(base + 65, 10), |r| runs.push(r))
            .unwrap();
        assert_eq!(runs, [PageRange::new(base + 70, 5)]);
    }

    #[test]
    fn what_is_not_in_ram_is_refused() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let bits = PageBits::new(&ram);
        assert!(bits.set(PageRange::new(512, 1)).is_err());
        assert!(bits.set(PageRange::new(0, 0)).is_err());
        assert!(bits.clear(PageRange::new(u64::MAX, u64::MAX)).is_err());
    }
}
