//! Where RAM lies in guest-physical address space: from 0, with a hole below 4 GiB for devices.

use thiserror::Error;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use crate::HUGE_PAGE_SIZE;

/// First guest-physical address of the hole that devices (local APIC, IO APIC, MMIO) live in.
pub const MMIO_HOLE_START: u64 = 3 << 30;
/// First guest-physical address after the hole.
pub const MMIO_HOLE_END: u64 = 4 << 30;
/// Largest RAM accepted, in bytes: 16 TiB, far below what page numbers can express.
pub const MAX_RAM_BYTES: u64 = 16 << 40;

/// Why a RAM size is not acceptable.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Not a positive multiple of 2 MiB.
    #[error("RAM of {0} bytes: give a multiple of 2 MiB, at least 2 MiB")]
    Unaligned(u64),
    /// More than [`MAX_RAM_BYTES`].
    #[error("RAM of {0} bytes is more than the {MAX_RAM_BYTES} bytes supported")]
    TooLarge(u64),
}

/// The page ranges of `bytes` of RAM, in ascending order: at most two, around the hole.
///
/// # Errors
/// [`LayoutError`] when the size is zero, not a multiple of 2 MiB, or too large.
pub fn ram_ranges(bytes: u64) -> Result<Vec<PageRange>, LayoutError> {
    if bytes == 0 || !bytes.is_multiple_of(HUGE_PAGE_SIZE) {
        return Err(LayoutError::Unaligned(bytes));
    }
    if bytes > MAX_RAM_BYTES {
        return Err(LayoutError::TooLarge(bytes));
    }
    let low = bytes.min(MMIO_HOLE_START);
    let mut ranges = vec![PageRange::new(0, low / PAGE_SIZE)];
    if bytes > low {
        let high = (bytes - low) / PAGE_SIZE;
        ranges.push(PageRange::new(MMIO_HOLE_END / PAGE_SIZE, high));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ram_is_one_region_and_large_ram_goes_around_the_hole() {
        assert_eq!(ram_ranges(64 << 20), Ok(vec![PageRange::new(0, 16384)]));
        assert_eq!(
            ram_ranges(4 << 30),
            Ok(vec![
                PageRange::new(0, 786_432),
                PageRange::new(1 << 20, 262_144)
            ])
        );
    }

    #[test]
    fn sizes_that_cannot_be_mapped_in_huge_pages_are_refused() {
        assert_eq!(ram_ranges(0), Err(LayoutError::Unaligned(0)));
        assert_eq!(ram_ranges(4096), Err(LayoutError::Unaligned(4096)));
        assert_eq!(
            ram_ranges(MAX_RAM_BYTES + HUGE_PAGE_SIZE),
            Err(LayoutError::TooLarge(MAX_RAM_BYTES + HUGE_PAGE_SIZE))
        );
    }
}
