//! What a page holds before anybody touches it: a pure function of seed and page number.

use crate::params::Params;

/// Words of eight bytes in a page.
pub const WORDS: usize = 512;

const WORDS_OF_TEXT: [u64; 16] = words([
    b"migrate ",
    b"the page",
    b"s while ",
    b"it runs ",
    b"and none",
    b" is lost",
    b", so the",
    b" guest  ",
    b"does not",
    b" notice ",
    b"anything",
    b" of it. ",
    b"INSERT I",
    b"NTO logs",
    b" VALUES ",
    b"(42, 'x'",
]);

/// The words that texts of eight bytes are.
const fn words<const N: usize>(texts: [&[u8; 8]; N]) -> [u64; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = u64::from_le_bytes(*texts[i]);
        i += 1;
    }
    out
}

/// Where the pointers of structs pages point to: one of 64 MiB for each page, as allocators keep
/// what belongs together.
const HEAP: u64 = 0x7f3a_c400_0000;
const MIB: u64 = 1 << 20;
/// The clock of structs pages: microseconds since 1970, a record about each millisecond.
const CLOCK: u64 = 1_790_000_000_000_000;
const TICK_BITS: u32 = 10;
/// Words in a record.
const FIELDS: u64 = 8;

const TAGS: [u64; 8] = words([
    b"conn\0\0\0\0",
    b"node\0\0\0\0",
    b"lru\0\0\0\0\0",
    b"key\0\0\0\0\0",
    b"inode\0\0\0",
    b"dentry\0\0",
    b"timer\0\0\0",
    b"req\0\0\0\0\0",
]);

/// The words of a page, in order.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    state: u64,
    class: Class,
    /// Of a structs page: words so far, the MiB it points into, and the time of its first record.
    words: u64,
    heap: u64,
    clock: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Zero,
    Text,
    Random,
    Structs,
}

/// A mixing of 64 bits (the finaliser of splitmix64).
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Pattern {
    /// The content of `page`.
    #[must_use]
    pub fn of(params: &Params, page: u64) -> Self {
        let state = mix(params.seed ^ mix(page));
        let dice = (state >> 32) % 100;
        let class = if dice < params.zero {
            Class::Zero
        } else if dice < params.zero + params.text {
            Class::Text
        } else if dice < 100 - params.structs {
            Class::Random
        } else {
            Class::Structs
        };
        Self {
            state: state | 1,
            class,
            words: 0,
            heap: HEAP + (state & 63) * MIB,
            clock: CLOCK.wrapping_add(page.wrapping_mul(WORDS as u64 / FIELDS) << TICK_BITS),
        }
    }

    /// The next word.
    #[inline]
    pub fn next_word(&mut self) -> u64 {
        if self.class == Class::Zero {
            return 0;
        }
        // xorshift64: quick, and random enough that no codec finds anything in it.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        match self.class {
            Class::Text => WORDS_OF_TEXT[(self.state >> 60) as usize],
            Class::Structs => self.field(),
            _ => self.state,
        }
    }

    /// The next word of the array of records that a structs page is: two pointers, a counter and
    /// flags, lengths, the time, nothing yet, and a tag.
    #[inline]
    fn field(&mut self) -> u64 {
        let (random, n) = (self.state >> 24, self.words);
        self.words += 1;
        match n % FIELDS {
            // To another record, and into a buffer.
            0 => self.heap + (random & (MIB - 1) & !63),
            1 => self.heap + (random & (MIB - 1) & !15),
            // Both are small more often than not.
            2 => (random & (random >> 12) & 0xfff) | (1 << (32 + (random >> 37) % 4)),
            // The buffer's length, and how long it may become.
            3 => (random & 0xfff) | ((random | 63) & 0xfff) << 32,
            4 => {
                let since = (n / FIELDS) << TICK_BITS | random & ((1 << TICK_BITS) - 1);
                self.clock.wrapping_add(since)
            }
            7 => TAGS[(random % 8) as usize],
            _ => 0,
        }
    }
}

/// Which word of a page of the hot set is its counter.
#[inline]
#[must_use]
pub const fn counter_word(page: u64) -> usize {
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
}
