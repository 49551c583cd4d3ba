//! What was last sent of every page, as a keyed 128-bit fingerprint: only what differs travels.
//!
//! The key is random for each migration, so that a guest cannot make two pages that look the same.
//! The hash uses vector instructions, AVX2 at most: twox-hash has no wider ones.
//!
//! 16 bytes a page, 4 MiB for each GiB of RAM that exists; nothing for RAM that does not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use twox_hash::XxHash3_128;
use vmferry_memory::{GuestRam, MemoryError};
use vmferry_protocol::PageRange;

/// Bytes of the key: what xxh3 asks for.
pub const KEY_BYTES: usize = 192;
/// Pages whose fingerprints are allocated together.
const BLOCK: u64 = 512;
/// A zero page's: no real one can be the same but by a chance of 2⁻¹²⁸.
const ZERO: (u64, u64) = (1, 0);

/// Fingerprint of nothing sent yet is `(0, 0)`, which is as improbable as `ZERO`.
type Block = Box<[(AtomicU64, AtomicU64)]>;

/// The table. Used by any number of threads at once, for different pages.
pub struct Fingerprints {
    key: [u8; KEY_BYTES],
    regions: Vec<(PageRange, Vec<OnceLock<Block>>)>,
}

impl std::fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not get into a log.
        f.debug_struct("Fingerprints").finish_non_exhaustive()
    }
}

impl Fingerprints {
    /// Of nothing; `key` is random.
    #[must_use]
    pub fn new(ram: &GuestRam, key: [u8; KEY_BYTES]) -> Self {
        let blocks = |pages: u64| {
            (0..pages.div_ceil(BLOCK))
                .map(|_| OnceLock::new())
                .collect()
        };
        let regions = ram.regions().iter();
        Self {
            key,
            regions: regions.map(|r| (r.range, blocks(r.range.count))).collect(),
        }
    }

    /// Bytes that it takes at present.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let blocks = self.regions.iter().flat_map(|(_, blocks)| blocks);
        let made = blocks.filter_map(OnceLock::get);
        made.map(|block| size_of_val::<[_]>(block) as u64).sum()
    }

    /// Whether `content`, or a zero page where there is none, differs from what was last sent as
    /// page `gfn`. From now on, this is what was last sent.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] for what is not RAM.
    pub fn changed(&self, gfn: u64, content: Option<&[u8]>) -> Result<bool, MemoryError> {
        let (region, blocks) = self
            .regions
            .iter()
            .find(|(region, _)| region.contains(gfn))
            .ok_or(MemoryError::OutOfRange {
                start: gfn,
                count: 1,
            })?;
        let at = gfn - region.start;
        let block = blocks[(at / BLOCK) as usize].get_or_init(|| {
            (0..BLOCK)
                .map(|_| (AtomicU64::new(0), AtomicU64::new(0)))
                .collect()
        });
        let entry = &block[(at % BLOCK) as usize];
        let new = match content.map(|c| XxHash3_128::oneshot_with_secret(&self.key, c)) {
            None => ZERO,
            Some(Ok(hash)) => (hash as u64, (hash >> 64) as u64),
            // The key has the length asked for; were it otherwise, every page travels.
            Some(Err(_)) => return Ok(true),
        };
        // One thread at a time has this page.
        let old = (
            entry.0.swap(new.0, Ordering::Relaxed),
            entry.1.swap(new.1, Ordering::Relaxed),
        );
        Ok(old != new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_from_the_last_is_changed() {
        let ram = GuestRam::new((3 << 30) + (4 << 20)).unwrap();
        let prints = Fingerprints::new(&ram, [7; KEY_BYTES]);
        let (a, mut b) = (vec![1u8; 4096], vec![1u8; 4096]);
        b[4000] ^= 0x10;
        for gfn in [0, 511, 512, (1 << 20) + 1023] {
            assert!(prints.changed(gfn, None).unwrap(), "nothing was sent");
            assert!(!prints.changed(gfn, None).unwrap());
            assert!(prints.changed(gfn, Some(&a)).unwrap());
            assert!(!prints.changed(gfn, Some(&a)).unwrap());
            assert!(prints.changed(gfn, Some(&b)).unwrap());
            assert!(prints.changed(gfn, Some(&a)).unwrap());
            assert!(prints.changed(gfn, None).unwrap());
        }
        assert!(prints.changed(786_432, None).is_err());
    }

    #[test]
    fn another_key_sees_other_fingerprints() {
        let page = [3u8; 4096];
        let hash = |key: u8| XxHash3_128::oneshot_with_secret(&[key; KEY_BYTES], &page).unwrap();
        assert_ne!(hash(1), hash(2));
    }
}
