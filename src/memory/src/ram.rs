//! [`GuestRam`]: the regions of a VM's memory, with checked access by guest page.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion, VolatileSlice,
};
use vmferry_protocol::{PAGE_SIZE, PageRange};

use crate::layout::{LayoutError, ram_ranges};
use crate::mapping::Mapping;
use crate::pagemap::{Pagemap, PopulatedSource, Query};

/// The view that devices and loaders use: every write through it is noted page by page, so that
/// trackers which cannot see the VMM's own writes still learn of them.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// Why RAM could not be made or accessed.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is not acceptable.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The kernel refused the mapping.
    #[error("cannot map {bytes} bytes of guest RAM; free memory or give the VM less")]
    Map {
        /// Size of the region, in bytes.
        bytes: u64,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The library refused the regions.
    #[error("guest RAM regions are not acceptable: {0}")]
    Regions(String),
    /// Pages outside RAM, or across two regions.
    #[error("pages {start:#x}+{count:#x} are not within one RAM region")]
    OutOfRange {
        /// First frame.
        start: u64,
        /// Number of pages.
        count: u64,
    },
    /// A buffer that does not fit the pages.
    #[error("a buffer of {got} bytes for {want} bytes of pages")]
    BufferSize {
        /// Bytes the pages hold.
        want: u64,
        /// Bytes given.
        got: u64,
    },
    /// The kernel did not tell which pages exist.
    #[error("cannot find the populated pages of guest RAM")]
    Pagemap(#[source] io::Error),
}

/// One region of RAM: its guest frames and where they are mapped in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// The guest frames.
    pub range: PageRange,
    /// Host-virtual address of the first byte, 2 MiB aligned.
    pub hva: usize,
}

impl RamRegion {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.bytes() as usize
    }

    /// Whether the region has no pages. Never true for regions of a [`GuestRam`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.count == 0
    }
}

/// A VM's RAM. Dropping it unmaps the memory, so whoever hands addresses to the kernel (KVM
/// slots, userfaultfd, io_uring) keeps an `Arc` of it.
#[derive(Debug)]
pub struct GuestRam {
    // Declared before the mappings: it points into them and must go first.
    memory: GuestMemory,
    regions: Vec<RamRegion>,
    bytes: u64,
    /// For each region a bit a page: it existed when somebody looked.
    seen: Vec<Vec<AtomicU64>>,
    pagemap: OnceLock<(Pagemap, PopulatedSource)>,
    _mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Maps `bytes` of RAM (a multiple of 2 MiB), laid out by [`ram_ranges`], all zero, untouched.
    ///
    /// # Errors
    /// [`MemoryError::Layout`] or [`MemoryError::Map`].
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        let mut parts = Vec::new();
        for range in ram_ranges(bytes)? {
            let len = range.bytes() as usize;
            let mapping = Mapping::anonymous(len).map_err(|source| MemoryError::Map {
                bytes: range.bytes(),
                source,
            })?;
            parts.push(Arc::new(region_view(&mapping, range)?));
            regions.push(RamRegion {
                range,
                hva: mapping.addr(),
            });
            mappings.push(mapping);
        }
        let memory = GuestMemory::from_arc_regions(parts)
            .map_err(|e| MemoryError::Regions(e.to_string()))?;
        let words = |pages: u64| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            memory,
            seen: regions.iter().map(|r| words(r.range.count)).collect(),
            regions,
            bytes,
            pagemap: OnceLock::new(),
            _mappings: mappings,
        })
    }

    /// Size of RAM in bytes, without the hole.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The regions in ascending order. A region's index is its KVM memory slot.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The view for devices and loaders.
    #[must_use]
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Host-virtual address of frame `range.start`, the whole range checked to lie in one region.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn hva(&self, range: PageRange) -> Result<usize, MemoryError> {
        let region = self.region_of(range)?;
        Ok(self.regions[region].hva + self.offset_in(region, range))
    }

    /// Index of the region that holds the whole of `range`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn region_of(&self, range: PageRange) -> Result<usize, MemoryError> {
        self.regions
            .iter()
            .position(|r| {
                range.count > 0 && range.start >= r.range.start && range.end() <= r.range.end()
            })
            .ok_or(MemoryError::OutOfRange {
                start: range.start,
                count: range.count,
            })
    }

    /// Copies the pages of `range` into `out`. The guest may write meanwhile: the copy is what
    /// some moment of each word held, and a tracker tells that the page has changed again.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::BufferSize`].
    pub fn copy_out(&self, range: PageRange, out: &mut [u8]) -> Result<(), MemoryError> {
        self.slice(range, out.len())?.copy_to(out);
        Ok(())
    }

    /// Writes `data` over the pages of `range`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::BufferSize`].
    pub fn copy_in(&self, range: PageRange, data: &[u8]) -> Result<(), MemoryError> {
        self.slice(range, data.len())?.copy_from(data);
        Ok(())
    }

    /// Calls `found` for every run of pages that exist, in ascending order. Pages left out were
    /// never touched (or are the shared zero page) and hold zeros.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`].
    pub fn populated(&self, mut found: impl FnMut(PageRange)) -> Result<(), MemoryError> {
        let (pagemap, source) = self.pagemap()?;
        for region in &self.regions {
            let end = region.hva + region.len();
            let emit = |from, to| found(range_at(region, from, to));
            match source {
                PopulatedSource::PagemapScan => {
                    pagemap.scan(region.hva, end, Query::POPULATED, emit)
                }
                PopulatedSource::PagemapFile => pagemap.read_present(region.hva, end, emit),
            }
            .map_err(MemoryError::Pagemap)?;
        }
        Ok(())
    }

    /// Calls `found` for every run of pages that exist, or that existed at an earlier call, in
    /// ascending order. A page that was written can become the shared zero page without another
    /// write (same-page merging, the shrinker of huge pages): whoever was told of it must be told
    /// again.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`].
    pub fn ever_populated(&self, mut found: impl FnMut(PageRange)) -> Result<(), MemoryError> {
        self.populated(|run| {
            let Ok(region) = self.region_of(run) else {
                return;
            };
            let base = self.regions[region].range.start;
            for gfn in run.frames() {
                let at = gfn - base;
                let word = &self.seen[region][(at / 64) as usize];
                word.fetch_or(1 << (at % 64), Ordering::Relaxed);
            }
        })?;
        for (region, seen) in self.regions.iter().zip(&self.seen) {
            let words: Vec<u64> = seen.iter().map(|w| w.load(Ordering::Relaxed)).collect();
            for_each_run(&words, |start, count| {
                found(PageRange::new(region.range.start + start, count));
            });
        }
        Ok(())
    }

    /// Calls `found` for every run of pages the VMM itself wrote through [`Self::guest_memory`]
    /// or [`Self::copy_in`] since the last call, and forgets them.
    pub fn take_vmm_writes(&self, mut found: impl FnMut(PageRange)) {
        for (region, view) in self.regions.iter().zip(self.memory.iter()) {
            let words = view.bitmap_words();
            for_each_run(&words, |start, count| {
                found(PageRange::new(region.range.start + start, count));
            });
        }
    }

    fn pagemap(&self) -> Result<&(Pagemap, PopulatedSource), MemoryError> {
        if let Some(open) = self.pagemap.get() {
            return Ok(open);
        }
        let pagemap = Pagemap::open().map_err(MemoryError::Pagemap)?;
        let source = pagemap.populated_source();
        Ok(self.pagemap.get_or_init(|| (pagemap, source)))
    }

    fn offset_in(&self, region: usize, range: PageRange) -> usize {
        ((range.start - self.regions[region].range.start) * PAGE_SIZE) as usize
    }

    fn slice(
        &self,
        range: PageRange,
        len: usize,
    ) -> Result<VolatileSlice<'_, impl vm_memory::bitmap::BitmapSlice + '_>, MemoryError> {
        let region = self.region_of(range)?;
        if len as u64 != range.bytes() {
            return Err(MemoryError::BufferSize {
                want: range.bytes(),
                got: len as u64,
            });
        }
        let offset = self.offset_in(region, range);
        self.memory
            .iter()
            .nth(region)
            .and_then(|r| r.get_slice(MemoryRegionAddress(offset as u64), len).ok())
            .ok_or(MemoryError::OutOfRange {
                start: range.start,
                count: range.count,
            })
    }
}

/// The run of guest frames that virtual addresses `[from, to)` of `region` hold.
#[must_use]
pub fn range_at(region: &RamRegion, from: usize, to: usize) -> PageRange {
    let start = (from - region.hva) as u64 / PAGE_SIZE;
    let count = (to - from) as u64 / PAGE_SIZE;
    PageRange::new(region.range.start + start, count)
}

/// Calls `found(first, count)` for every run of set bits, bit 0 of word 0 being page 0.
pub fn for_each_run(words: &[u64], mut found: impl FnMut(u64, u64)) {
    let mut run: Option<u64> = None;
    for (i, &word) in words.iter().enumerate() {
        let base = i as u64 * 64;
        if (word == 0 && run.is_none()) || (word == u64::MAX && run.is_some()) {
            continue;
        }
        for bit in 0..64 {
            match (word >> bit & 1 == 1, run) {
                (true, None) => run = Some(base + bit),
                (false, Some(from)) => {
                    found(from, base + bit - from);
                    run = None;
                }
                _ => {}
            }
        }
    }
    if let Some(from) = run {
        found(from, words.len() as u64 * 64 - from);
    }
}

trait TakeBitmap {
    fn bitmap_words(&self) -> Vec<u64>;
}

impl TakeBitmap for GuestRegionMmap<AtomicBitmap> {
    fn bitmap_words(&self) -> Vec<u64> {
        self.get_mmap().bitmap().get_and_reset()
    }
}

fn region_view(
    mapping: &Mapping,
    range: PageRange,
) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
    let len = range.bytes() as usize;
    // SAFETY: `mapping` covers `len` bytes with these protections and flags, and `GuestRam` keeps
    // it mapped for as long as the view exists.
    let region = unsafe {
        MmapRegion::build_raw(
            mapping.as_ptr(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        )
    }
    .map_err(|e| MemoryError::Regions(e.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(range.gpa()))
        .ok_or_else(|| MemoryError::Regions("region end overflows".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn populated(ram: &GuestRam) -> Vec<PageRange> {
        let mut runs = Vec::new();
        ram.populated(|r| runs.push(r)).unwrap();
        runs
    }

    #[test]
    fn untouched_ram_is_not_populated_and_touched_pages_are() {
        let ram = GuestRam::new(64 << 20).unwrap();
        assert_eq!(populated(&ram), vec![]);
        ram.copy_in(PageRange::new(512, 1), &[7; 4096]).unwrap();
        let runs = populated(&ram);
        assert!(runs.iter().any(|r| r.contains(512)), "{runs:?}");
        assert!(runs.iter().all(|r| !r.contains(0) && !r.contains(1024)));
    }

    #[test]
    fn a_page_that_existed_is_told_again_when_it_is_gone() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let page = PageRange::new(600, 1);
        ram.copy_in(page, &[7; 4096]).unwrap();
        let ever = || {
            let mut runs = Vec::new();
            ram.ever_populated(|r| runs.push(r)).unwrap();
            runs.iter().any(|r| r.contains(600))
        };
        assert!(ever());
        let hva = ram.hva(PageRange::new(512, 512)).unwrap();
        // SAFETY: the pages are this test's own RAM, and nothing points into them.
        let rc = unsafe { libc::madvise(hva as *mut libc::c_void, 2 << 20, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0);
        assert!(populated(&ram).iter().all(|r| !r.contains(600)));
        assert!(ever());
    }

    #[test]
    fn both_ways_of_finding_populated_pages_agree() {
        let ram = GuestRam::new(32 << 20).unwrap();
        for page in [0, 513, 514, 8191] {
            ram.copy_in(PageRange::new(page, 1), &[1; 4096]).unwrap();
        }
        let region = ram.regions()[0];
        let pagemap = Pagemap::open().unwrap();
        let mut by_file = Vec::new();
        pagemap
            .read_present(region.hva, region.hva + region.len(), |a, b| {
                by_file.push(range_at(&region, a, b));
            })
            .unwrap();
        let pages =
            |runs: &[PageRange]| runs.iter().flat_map(PageRange::frames).collect::<Vec<_>>();
        assert_eq!(pages(&populated(&ram)), pages(&by_file));
    }

    #[test]
    fn ram_above_the_hole_is_reachable_and_the_hole_is_not() {
        let ram = GuestRam::new((3 << 30) + (4 << 20)).unwrap();
        let high = PageRange::new(1 << 20, 2);
        ram.copy_in(high, &[9; 8192]).unwrap();
        let mut back = [0; 8192];
        ram.copy_out(high, &mut back).unwrap();
        assert_eq!(back, [9; 8192]);
        assert!(ram.hva(PageRange::new(786_432, 1)).is_err());
        assert!(ram.hva(PageRange::new(786_431, 2)).is_err());
        assert!(ram.hva(PageRange::new(u64::MAX, u64::MAX)).is_err());
        assert!(ram.copy_out(high, &mut back[..4096]).is_err());
    }

    #[test]
    fn regions_are_huge_page_aligned() {
        let ram = GuestRam::new((3 << 30) + (4 << 20)).unwrap();
        for region in ram.regions() {
            assert_eq!(region.hva % crate::HUGE_PAGE_SIZE as usize, 0);
            assert_eq!(region.range.gpa() % crate::HUGE_PAGE_SIZE, 0);
        }
    }

    #[test]
    fn writes_of_the_vmm_are_noted_once() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.guest_memory()
            .write_slice(&[1; 5000], GuestAddress(4096 * 3 + 100))
            .unwrap();
        let mut seen = Vec::new();
        ram.take_vmm_writes(|r| seen.push(r));
        assert_eq!(seen, vec![PageRange::new(3, 2)]);
        ram.take_vmm_writes(|r| panic!("{r:?} again"));
    }

    #[test]
    fn runs_are_found_across_words() {
        let mut runs = Vec::new();
        for_each_run(&[1 << 63, u64::MAX, 0b1011], |s, c| runs.push((s, c)));
        assert_eq!(runs, vec![(63, 67), (131, 1)]);
        runs.clear();
        for_each_run(&[0, u64::MAX], |s, c| runs.push((s, c)));
        assert_eq!(runs, vec![(64, 64)]);
    }
}
