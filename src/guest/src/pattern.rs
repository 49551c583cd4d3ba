//! What a page holds before anybody touches it: a pure function of seed and page number.

use crate::params::Params;

/// Words of eight bytes in a page.
pub const WORDS: usize = 512;

const WORDS_OF_TEXT: [u64; 16] = {
    let text: [&[u8; 8]; 16] = [
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
    ];
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = u64::from_le_bytes(*text[i]);
        i += 1;
    }
    out
};

/// The words of a page, in order.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    state: u64,
    class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Zero,
    Text,
    Random,
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
        } else {
            Class::Random
        };
        Self {
            state: state | 1,
            class,
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
            _ => self.state,
        }
    }
}

/// Which word of a page of the hot set is its counter.
#[inline]
#[must_use]
pub const fn counter_word(page: u64) -> usize {
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
}
