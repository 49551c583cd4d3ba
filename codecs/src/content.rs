//! What kind of content a chunk has, by a look at a few bytes of each page.
//!
//! A look reads 64 bytes of a page (1.6 %): enough to tell what compresses from what does not, and
//! a small part of what reading the page for sending costs.

use crate::PAGE;

/// Windows that are looked at in a page, and bytes of each.
const WINDOWS: usize = 4;
const WINDOW: usize = 16;
const LOOKED_AT: usize = WINDOWS * WINDOW;
/// A chunk is of a kind that at least this share of its pages is of.
const MAJORITY: (usize, usize) = (3, 4);

/// Kinds of content. What is learned of a codec is learned for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Mostly zero bytes, or one word again and again.
    Repeated,
    /// Printable characters.
    Text,
    /// Words whose upper bytes say nothing: pointers, small integers.
    Structs,
    /// Something else that is not random: code, packed rows.
    Binary,
    /// Looks random: compressed or encrypted already.
    Random,
    /// Pages of several kinds, the minority of them random.
    Mixed,
    /// Pages of several kinds, at least half of them random.
    MostlyRandom,
}

impl Content {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Repeated,
        Self::Text,
        Self::Structs,
        Self::Binary,
        Self::Random,
        Self::Mixed,
        Self::MostlyRandom,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Repeated => "repeated",
            Self::Text => "text",
            Self::Structs => "structs",
            Self::Binary => "binary",
            Self::Random => "random",
            Self::Mixed => "mixed",
            Self::MostlyRandom => "mostly-random",
        }
    }

    /// The kind of whole pages of 4 KiB; bytes beyond the last whole page are not looked at.
    #[must_use]
    pub fn of(pages: &[u8]) -> Self {
        let mut counts = [0usize; 5];
        for page in pages.chunks_exact(PAGE) {
            counts[of_page(page) as usize] += 1;
        }
        let all: usize = counts.iter().sum();
        let (part, of) = MAJORITY;
        let kinds = [
            Self::Repeated,
            Self::Text,
            Self::Structs,
            Self::Binary,
            Self::Random,
        ];
        let most = kinds.into_iter().max_by_key(|kind| counts[*kind as usize]);
        match most {
            Some(kind) if counts[kind as usize] * of >= all * part => kind,
            _ if counts[Self::Random as usize] * 2 >= all => Self::MostlyRandom,
            _ => Self::Mixed,
        }
    }
}

/// One of the first five kinds.
fn of_page(page: &[u8]) -> Content {
    let mut seen = [0u64; 4];
    let (mut zeros, mut printable, mut light_words, mut repeats) = (0, 0, 0, 0);
    for n in 0..WINDOWS {
        // Not at the beginning of a page, where headers are, nor always at the same place of a record.
        let at = (n * PAGE / WINDOWS + 128 + 48 * n) & !7;
        let window = &page[at..at + WINDOW];
        for &byte in window {
            seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
            zeros += usize::from(byte == 0);
            printable += usize::from(matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'));
        }
        for word in window.chunks_exact(8) {
            light_words += usize::from(word[6..] == [0, 0]);
        }
        repeats += usize::from(window[..8] == window[8..]);
    }
    let distinct: u32 = seen.iter().map(|word| word.count_ones()).sum();
    if repeats == WINDOWS || zeros * 4 >= LOOKED_AT * 3 {
        Content::Repeated
    } else if printable * 10 >= LOOKED_AT * 9 {
        Content::Text
    } else if light_words * 2 >= WINDOWS * WINDOW / 8 {
        Content::Structs
    } else if distinct >= 48 {
        // 64 random bytes have 57 different values, give or take three.
        Content::Random
    } else {
        Content::Binary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(pages: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.take(pages * PAGE / 8).flatten().collect()
    }

    fn text(pages: usize) -> Vec<u8> {
        b"the quick brown fox jumps over the lazy dog 42 times.\n"
            .iter()
            .copied()
            .cycle()
            .take(pages * PAGE)
            .collect()
    }

    #[test]
    fn each_kind_is_known_by_its_own() {
        assert_eq!(Content::of(&random(64, 7)), Content::Random);
        assert_eq!(Content::of(&text(64)), Content::Text);
        let pointers: Vec<u8> = (0..PAGE as u64)
            .flat_map(|n| (0x7f12_3456_0000 + n * 64).to_le_bytes())
            .collect();
        assert_eq!(Content::of(&pointers), Content::Structs);
        assert_eq!(Content::of(&[1; PAGE]), Content::Repeated);
        let code: Vec<u8> = random(1, 3).iter().map(|b| b % 24 * 9).collect();
        assert_eq!(Content::of(&code), Content::Binary);
    }

    #[test]
    fn several_kinds_are_told_apart_by_how_much_is_random() {
        let mostly = [text(3), random(5, 1)].concat();
        assert_eq!(Content::of(&mostly), Content::MostlyRandom);
        let partly = [text(5), random(3, 1)].concat();
        assert_eq!(Content::of(&partly), Content::Mixed);
        let nearly = [text(7), random(1, 1)].concat();
        assert_eq!(Content::of(&nearly), Content::Text);
    }
}
