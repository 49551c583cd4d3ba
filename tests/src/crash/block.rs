//! A block as the guest stamps it.

use vmferry_guest::disk::stamp::{SECTOR, SECTORS, Sector, inspect};

/// Bytes of a block.
pub(super) const BLOCK: usize = SECTOR * SECTORS;
const WORDS: usize = BLOCK / 8;

/// A block's content.
pub(super) struct Block([u64; WORDS]);

impl From<&[u8; BLOCK]> for Block {
    fn from(bytes: &[u8; BLOCK]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes);
        }
        Self(words)
    }
}

impl Block {
    /// What sector `at`, below [`SECTORS`], says of itself.
    pub(super) fn sector(&self, at: usize) -> Sector {
        assert!(at < SECTORS);
        // SAFETY: a block of words that outlives the call, and a sector within it.
        unsafe { inspect(self.0.as_ptr(), at) }
    }

    /// Whether sector `at` is sound, and one of block `number`.
    pub(super) fn is_of(&self, at: usize, number: u64) -> bool {
        let sector = self.sector(at);
        sector.sound && sector.index == at as u64 && sector.stamp.block == number
    }

    /// Whether nothing was ever written to sector `at`.
    pub(super) fn is_blank(&self, at: usize) -> bool {
        let words = SECTOR / 8;
        self.0[at * words..][..words].iter().all(|w| *w == 0)
    }
}
