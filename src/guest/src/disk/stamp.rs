//! What is written to a block: every sector of 512 bytes says whose it is, and sums itself up.

use crate::pattern::mix;

/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// Sectors in a block.
pub const SECTORS: usize = 8;
/// Words of eight bytes in a sector.
const WORDS: usize = SECTOR / 8;
/// The word with the sum.
const SUM: usize = WORDS - 1;

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// A number of this run and vCPU: what an earlier run left is not taken for this one's.
    pub nonce: u64,
    /// Block of the disk.
    pub block: u64,
    /// Generation of the write.
    pub generation: u32,
    /// Who wrote it.
    pub vcpu: u32,
}

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sector {
    /// Whose.
    pub stamp: Stamp,
    /// Place in its block.
    pub index: u64,
    /// Whether the sum is right.
    pub sound: bool,
}

fn fold(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// Fills the block at `at`.
///
/// # Safety
/// `at` is valid for a block, and aligned to words.
pub unsafe fn fill(at: *mut u64, stamp: &Stamp) {
    let mut random = mix(stamp.nonce ^ mix(stamp.block) ^ u64::from(stamp.generation)) | 1;
    for sector in 0..SECTORS {
        let head = [
            stamp.nonce,
            stamp.block,
            u64::from(stamp.generation) | u64::from(stamp.vcpu) << 32,
            sector as u64,
        ];
        let mut sum = 0;
        for word in 0..WORDS {
            let value = match (head.get(word), word) {
                (Some(&value), _) => value,
                (None, SUM) => sum,
                _ => {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                }
            };
            sum = fold(sum, value);
            // SAFETY: inside the block.
            unsafe { at.add(sector * WORDS + word).write_volatile(value) };
        }
    }
}

/// Makes the block at `at` one that no disk holds, before it is read into.
///
/// # Safety
/// As [`fill`].
pub unsafe fn poison(at: *mut u64) {
    for sector in 0..SECTORS {
        for word in [0, 1, 2, SUM] {
            // SAFETY: inside the block.
            unsafe { at.add(sector * WORDS + word).write_volatile(u64::MAX) };
        }
    }
}

/// Looks at a sector, whatever is in it.
///
/// # Safety
/// As [`fill`]; `sector` is below [`SECTORS`].
pub unsafe fn inspect(at: *const u64, sector: usize) -> Sector {
    // SAFETY: inside the block.
    let word = |word: usize| unsafe { at.add(sector * WORDS + word).read_volatile() };
    let sum = (0..SUM).fold(0, |sum, i| fold(sum, word(i)));
    let who = word(2);
    Sector {
        stamp: Stamp {
            nonce: word(0),
            block: word(1),
            generation: who as u32,
            vcpu: (who >> 32) as u32,
        },
        index: word(3),
        sound: word(SUM) == sum,
    }
}

/// The first field of `found`, sector `index` of a block, that is not as `expected`: its name, what
/// it must be and what it is. The generation is not looked at.
#[must_use]
pub fn differs(expected: &Stamp, index: usize, found: &Sector) -> Option<(&'static str, u64, u64)> {
    let fields = [
        ("the run's number", expected.nonce, found.stamp.nonce),
        ("the block's number", expected.block, found.stamp.block),
        ("the writer", expected.vcpu.into(), found.stamp.vcpu.into()),
        ("the sector's number", index as u64, found.index),
        ("the soundness of its sum", 1, found.sound.into()),
    ];
    fields
        .into_iter()
        .find(|&(_, expected, found)| expected != found)
}
