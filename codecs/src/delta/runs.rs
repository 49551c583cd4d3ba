//! Differences as runs: zeros to skip, then literal bytes to XOR, in turn.
//!
//! ```text
//! (zeros: varint | literal: varint | that many bytes)* | zeros: varint, where any are left
//! ```
//!
//! They cover the pages exactly. A literal is never empty; only the first zero run may be; a
//! varint (LEB128, up to 32 bits) is as short as it can be. An encoder makes one form only:
//! literals begin and end with a byte that is not zero, and have at most three zeros in a row, as
//! a run of its own would be no shorter.

use crate::PAGE;

/// Compared at once: large enough for the widest registers, small enough to be looked at by word.
const BLOCK: usize = 128;
/// Zeros that end a literal.
const GAP: usize = 4;
/// What the two lengths of a run take, where there are many in a page.
const RUN_COST: usize = 2;
/// More than this and the page is better off with a codec that compresses.
const WORTH: usize = PAGE / 2;

#[derive(Clone, Copy, Debug)]
struct Run {
    zeros: usize,
    literal: usize,
}

/// The runs of some pages, as they are found.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    literals: Vec<u8>,
    /// Zeros since the last literal.
    zeros: usize,
}

/// Where a page begins, to go back to.
struct Mark {
    runs: usize,
    last: Option<Run>,
    literals: usize,
    zeros: usize,
}

impl Runs {
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.literals.clear();
        self.zeros = 0;
    }

    /// Adds the difference of a page to its base. Returns false, with nothing added, where that
    /// is more than half a page.
    pub(super) fn add(&mut self, page: &[u8], base: &[u8]) -> bool {
        let mark = self.mark();
        let most = self.cost() + WORTH;
        for (page, base) in page.chunks_exact(BLOCK).zip(base.chunks_exact(BLOCK)) {
            if same(page, base) {
                self.zeros += BLOCK;
                continue;
            }
            for (a, b) in page.as_chunks::<8>().0.iter().zip(base.as_chunks::<8>().0) {
                self.word(u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b));
            }
            if self.cost() > most {
                self.back_to(&mark);
                return false;
            }
        }
        true
    }

    /// Appends the runs to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut literals = &self.literals[..];
        for run in &self.runs {
            let (here, after) = literals.split_at(run.literal);
            put_varint(run.zeros, out);
            put_varint(run.literal, out);
            out.extend_from_slice(here);
            literals = after;
        }
        if self.zeros > 0 {
            put_varint(self.zeros, out);
        }
    }

    fn cost(&self) -> usize {
        self.literals.len() + RUN_COST * self.runs.len()
    }

    fn word(&mut self, word: u64) {
        if word == 0 {
            self.zeros += 8;
            return;
        }
        let bytes = word.to_le_bytes();
        let before = word.trailing_zeros() as usize / 8;
        let after = word.leading_zeros() as usize / 8;
        let middle = &bytes[before..8 - after];
        // Two bytes that are not zero, and no room between them for a gap that ends a literal.
        if middle.len() < GAP + 2 || !has_zero_byte(word) {
            self.zeros += before;
            self.literal(middle);
            self.zeros = after;
        } else {
            for byte in bytes {
                match byte {
                    0 => self.zeros += 1,
                    _ => self.literal(&[byte]),
                }
            }
        }
    }

    /// Adds bytes after the zeros that were counted.
    fn literal(&mut self, bytes: &[u8]) {
        match self.runs.last_mut() {
            Some(last) if self.zeros < GAP => {
                self.literals.extend_from_slice(&[0; GAP][..self.zeros]);
                last.literal += self.zeros + bytes.len();
            }
            _ => self.runs.push(Run {
                zeros: self.zeros,
                literal: bytes.len(),
            }),
        }
        self.literals.extend_from_slice(bytes);
        self.zeros = 0;
    }

    fn mark(&self) -> Mark {
        Mark {
            runs: self.runs.len(),
            last: self.runs.last().copied(),
            literals: self.literals.len(),
            zeros: self.zeros,
        }
    }

    fn back_to(&mut self, mark: &Mark) {
        self.runs.truncate(mark.runs);
        if let (Some(last), Some(was)) = (self.runs.last_mut(), mark.last) {
            *last = was;
        }
        self.literals.truncate(mark.literals);
        self.zeros = mark.zeros;
    }
}

/// Looks at all before it judges: the compiler makes it vectors.
fn same(page: &[u8], base: &[u8]) -> bool {
    let both = page.iter().zip(base);
    both.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

const fn has_zero_byte(word: u64) -> bool {
    let ones = 0x0101_0101_0101_0101;
    word.wrapping_sub(ones) & !word & (ones << 7) != 0
}

/// XORs runs that cover `len` bytes, which is all of `pages`. None where they do not, and where
/// they are damaged.
pub(super) fn apply<'a>(
    mut input: &[u8],
    pages: impl Iterator<Item = &'a mut [u8]>,
    len: usize,
) -> Option<()> {
    let mut walk = Walk {
        pages,
        here: &mut [],
    };
    let (mut left, mut first) = (len, true);
    while left > 0 {
        let zeros = take_varint(&mut input)?;
        if zeros == 0 && !first {
            return None;
        }
        first = false;
        left = left.checked_sub(zeros)?;
        walk.each(zeros, |_| ());
        if left == 0 {
            break;
        }
        let literal = take_varint(&mut input).filter(|&n| n > 0)?;
        left = left.checked_sub(literal)?;
        let mut bytes = input.split_off(..literal)?;
        walk.each(literal, |piece| {
            let (now, after) = bytes.split_at(piece.len());
            piece.iter_mut().zip(now).for_each(|(a, b)| *a ^= b);
            bytes = after;
        });
    }
    input.is_empty().then_some(())
}

/// Pages one after the other, as if they were one.
struct Walk<'a, P> {
    pages: P,
    here: &'a mut [u8],
}

impl<'a, P: Iterator<Item = &'a mut [u8]>> Walk<'a, P> {
    /// Calls `f` with the next `len` bytes, in pieces that end where a page ends.
    fn each(&mut self, mut len: usize, mut f: impl FnMut(&mut [u8])) {
        while len > 0 {
            if self.here.is_empty() {
                match self.pages.next() {
                    Some(page) => self.here = page,
                    None => return,
                }
            }
            let piece = len.min(self.here.len());
            let (now, after) = std::mem::take(&mut self.here).split_at_mut(piece);
            f(now);
            self.here = after;
            len -= piece;
        }
    }
}

/// The encoder has refused what is longer than 32 bits.
fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most 32 bits, in as few bytes as can be.
fn take_varint(input: &mut &[u8]) -> Option<usize> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = *input.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let shortest = byte != 0 || shift == 0;
            return u32::try_from(value)
                .ok()
                .filter(|_| shortest)
                .and_then(|v| usize::try_from(v).ok());
        }
    }
    None
}
