//! Which pages of a mapping exist, asked of the kernel without touching them.
//!
//! Uses the PAGEMAP_SCAN ioctl (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst) and falls
//! back to reading `/proc/self/pagemap`. A page that was never touched, or that is only the
//! shared zero page, holds zeros and need not be read to know it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// How populated ranges are found on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopulatedSource {
    /// By the PAGEMAP_SCAN ioctl.
    PagemapScan,
    /// By reading `/proc/self/pagemap`, eight bytes a page.
    PagemapFile,
}

const PAGE: usize = 4096;
/// Categories of PAGEMAP_SCAN (include/uapi/linux/fs.h).
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Flag: write-protect what matched, through the userfaultfd registration.
pub const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Flag: fail with EPERM where the range is not registered for asynchronous write protection.
pub const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// `struct page_region`: `[start, end)` in bytes of virtual address, and its categories.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

// _IOWR('f', 16, struct pm_scan_arg)
const PAGEMAP_SCAN: libc::c_ulong =
    (3 << 30) | ((size_of::<ScanArg>() as libc::c_ulong) << 16) | (0x66 << 8) | 16;
const REGIONS_A_CALL: usize = 1024;

/// What a scan looks for: see the kernel's description of the masks.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// `PM_SCAN_*` flags.
    pub flags: u64,
    /// Categories whose meaning is inverted before the masks apply.
    pub inverted: u64,
    /// Categories that must all be set.
    pub all_of: u64,
    /// Categories of which one must be set.
    pub any_of: u64,
}

impl Query {
    /// Pages that exist and are not the shared zero page.
    pub const POPULATED: Self = Self {
        flags: 0,
        inverted: PAGE_IS_PFNZERO,
        all_of: PAGE_IS_PFNZERO,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };
    /// Pages that exist and were written since they were last write-protected.
    pub const WRITTEN: Self = Self {
        flags: PM_SCAN_CHECK_WPASYNC,
        inverted: 0,
        all_of: PAGE_IS_WRITTEN,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Opens this process's page map.
    ///
    /// # Errors
    /// The error of opening the file (no `/proc`, no permission).
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/pagemap")?,
        })
    }

    /// Calls `found(start, end)` (virtual addresses, page aligned, ascending) for every run of
    /// pages in `[start, end)` that matches `query`.
    ///
    /// # Errors
    /// The ioctl's error: ENOTTY where the kernel has no PAGEMAP_SCAN, EPERM where the range is
    /// not registered as the query's flags demand.
    pub fn scan(
        &self,
        start: usize,
        end: usize,
        query: Query,
        mut found: impl FnMut(usize, usize),
    ) -> io::Result<()> {
        let mut regions = vec![Region::default(); REGIONS_A_CALL];
        let mut at = start as u64;
        while at < end as u64 {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: query.flags,
                start: at,
                end: end as u64,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_inverted: query.inverted,
                category_mask: query.all_of,
                category_anyof_mask: query.any_of,
                return_mask: 0,
                ..ScanArg::default()
            };
            // SAFETY: `arg` and the vector it points to outlive the call and have the sizes given.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            for region in regions.iter().take(n as usize) {
                found(region.start as usize, region.end as usize);
            }
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    /// Like [`Self::scan`] with [`Query::POPULATED`], on kernels without the ioctl. Zero pages
    /// count as populated here: the file does not tell them apart.
    ///
    /// # Errors
    /// The error of reading the file.
    pub fn read_present(
        &self,
        start: usize,
        end: usize,
        mut found: impl FnMut(usize, usize),
    ) -> io::Result<()> {
        const ENTRIES: usize = 8192;
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        let mut buffer = vec![0u8; ENTRIES * 8];
        let mut run: Option<usize> = None;
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE).min(ENTRIES);
            let bytes = &mut buffer[..pages * 8];
            self.file.read_exact_at(bytes, (at / PAGE) as u64 * 8)?;
            for (i, entry) in bytes.chunks_exact(8).enumerate() {
                let here = at + i * PAGE;
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                match (entry & PRESENT_OR_SWAPPED != 0, run) {
                    (true, None) => run = Some(here),
                    (false, Some(from)) => {
                        found(from, here);
                        run = None;
                    }
                    _ => {}
                }
            }
            at += pages * PAGE;
        }
        if let Some(from) = run {
            found(from, end);
        }
        Ok(())
    }

    /// Which way of finding populated pages this kernel offers.
    #[must_use]
    pub fn populated_source(&self) -> PopulatedSource {
        match self.scan(PAGE, 2 * PAGE, Query::POPULATED, |_, _| {}) {
            Ok(()) => PopulatedSource::PagemapScan,
            Err(_) => PopulatedSource::PagemapFile,
        }
    }
}
