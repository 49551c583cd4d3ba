//! Delta: pages as their difference to the version that the destination already holds.
//!
//! A guest that writes a few words to a page again and again makes the whole page travel in every
//! pass. Both sides know what it held before: the source keeps it ([`Cache`]), the destination has
//! it in RAM. So only the bytes that differ travel, as runs; see [`Encoder::encode`].
//!
//! ```text
//! inner codec: u8 | length of the runs: u32 LE | one bit a page: has a difference | runs | rest | sum: u64 LE
//! ```
//!
//! The bitmap's first page is the lowest bit of its first byte; bits past the last page are zero.
//! *Runs* are the differences (XOR with the base) of the pages whose bit is set, one after the
//! other, in the form that `runs.rs` describes. *Rest* is all other pages, encoded by the inner
//! codec: raw, lz4, zstd or brotli; raw and of no length where there are none.
//!
//! *Sum* is the xxh3-64 of all pages as they are to become: were the two sides ever not of one mind
//! about a base, the chunk is refused, and the guest does not go on with wrong memory.
//!
//! The runs are not compressed in turn. Differences that would repay it (an array of pointers
//! that all moved alike) are more than half a page mostly, and such a page goes with the rest.

mod cache;
mod runs;

use twox_hash::XxHash3_64;

use crate::{CodecError, CodecId, PAGE, PageCodec};

pub use cache::Cache;
use runs::Runs;

/// Bytes before the bitmap, and of the sum at the end.
const HEAD: usize = 5;
const SUM: usize = 8;

const DAMAGED: CodecError = CodecError::Damaged {
    codec: CodecId::Delta.name(),
};

/// Encodes differences; one for each thread, for its working memory.
#[derive(Debug, Default)]
pub struct Encoder {
    runs: Runs,
    rest: Vec<u8>,
}

impl Encoder {
    /// Appends to `out` what makes `pages` of `bases`: for each page the version that the
    /// destination holds, where it is known. Pages without, and those whose difference is more
    /// than half a page, are encoded by `rest`.
    ///
    /// Returns whether it did. If not, `out` is as it was: no page had a difference worth it, or
    /// the whole is not shorter than `pages`. The chunk is then best encoded by `rest` alone.
    ///
    /// # Errors
    /// [`CodecError::Encode`] from `rest`, where `rest` is not a codec of contents, or where
    /// `pages` and `bases` are not whole pages and as many. `out` is then as it was, too.
    pub fn encode(
        &mut self,
        pages: &[u8],
        bases: &[Option<&[u8]>],
        rest: &mut dyn PageCodec,
        out: &mut Vec<u8>,
    ) -> Result<bool, CodecError> {
        let whole = |base: &Option<&[u8]>| base.is_none_or(|b| b.len() == PAGE);
        if Some(pages.len()) != bases.len().checked_mul(PAGE)
            || u32::try_from(pages.len()).is_err()
            || !bases.iter().all(whole)
        {
            return Err(refused("pages and bases that do not match"));
        }
        let start = out.len();
        let encoded = self.append(pages, bases, rest, out);
        out.extend(XxHash3_64::oneshot(pages).to_le_bytes());
        let shorter = matches!(encoded, Ok(true)) && out.len() - start < pages.len();
        if !shorter {
            out.truncate(start);
        }
        encoded.map(|_| shorter)
    }

    fn append(
        &mut self,
        pages: &[u8],
        bases: &[Option<&[u8]>],
        rest: &mut dyn PageCodec,
        out: &mut Vec<u8>,
    ) -> Result<bool, CodecError> {
        let head = out.len();
        let map = head + HEAD;
        let runs = map + bases.len().div_ceil(8);
        out.resize(runs, 0);
        self.runs.clear();
        self.rest.clear();
        for (at, (page, base)) in pages.chunks_exact(PAGE).zip(bases).enumerate() {
            if base.is_some_and(|base| self.runs.add(page, base)) {
                out[map + at / 8] |= 1 << (at % 8);
            } else {
                self.rest.extend_from_slice(page);
            }
        }
        if self.rest.len() == pages.len() {
            return Ok(false);
        }
        self.runs.write(out);
        let len = (out.len() - runs) as u32;
        out[head + 1..map].copy_from_slice(&len.to_le_bytes());
        out[head] = self.append_rest(rest, out)? as u8;
        Ok(true)
    }

    /// Appends the pages that have no difference. Returns the codec that they are encoded by.
    fn append_rest(
        &self,
        codec: &mut dyn PageCodec,
        out: &mut Vec<u8>,
    ) -> Result<CodecId, CodecError> {
        if !self.rest.is_empty() && codec.encode(&self.rest, out)? {
            let id = codec.id();
            return if is_inner(id) {
                Ok(id)
            } else {
                Err(refused("an inner codec that is not one of contents"))
            };
        }
        out.extend_from_slice(&self.rest);
        Ok(CodecId::Raw)
    }
}

fn refused(why: &str) -> CodecError {
    CodecError::Encode {
        codec: CodecId::Delta.name(),
        detail: why.to_owned(),
    }
}

/// Delta in delta would be a way to nest without end; zero pages are not content.
const fn is_inner(codec: CodecId) -> bool {
    match codec {
        CodecId::Raw | CodecId::Lz4 | CodecId::Zstd | CodecId::Brotli => true,
        CodecId::Zero | CodecId::Delta => false,
    }
}

/// The parts of an encoding; lengths are checked, contents are not.
struct Parts<'a> {
    inner: u8,
    map: &'a [u8],
    runs: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn split(input: &'a [u8], pages: usize) -> Option<Self> {
        let (&[inner, len @ ..], input) = input.split_first_chunk::<HEAD>()?;
        let (map, input) = input.split_at_checked(pages.div_ceil(8))?;
        let len = usize::try_from(u32::from_le_bytes(len)).ok()?;
        let (runs, rest) = input.split_at_checked(len)?;
        let unused = match (map.last(), pages % 8) {
            (Some(last), used @ 1..) => last >> used,
            _ => 0,
        };
        (unused == 0).then_some(Self {
            inner,
            map,
            runs,
            rest,
        })
    }

    fn has_difference(&self, page: usize) -> bool {
        self.map[page / 8] & (1 << (page % 8)) != 0
    }
}

/// Decodes `input` into exactly all of `pages`, which hold the bases when this is called: at
/// least those of the pages that have a difference.
///
/// Takes at most `pages.len()` of working memory.
///
/// # Errors
/// [`CodecError::Damaged`] where it is not exactly that, [`CodecError::Unknown`] for an inner
/// codec that there is not. `pages` may be written to in part: the bases are lost then.
pub fn decode(input: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
    let (frame, sum) = input.split_last_chunk::<SUM>().ok_or(DAMAGED)?;
    decode_frame(frame, pages)?;
    let right = XxHash3_64::oneshot(pages).to_le_bytes() == *sum;
    if right { Ok(()) } else { Err(DAMAGED) }
}

/// Decodes all but the sum.
fn decode_frame(input: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
    let count = pages.len() / PAGE;
    if !pages.len().is_multiple_of(PAGE) {
        return Err(DAMAGED);
    }
    let parts = Parts::split(input, count).ok_or(DAMAGED)?;
    let inner = CodecId::try_from(parts.inner)?;
    if !is_inner(inner) {
        return Err(DAMAGED);
    }
    let differences: usize = parts.map.iter().map(|b| b.count_ones() as usize).sum();
    let with = pages.chunks_exact_mut(PAGE).enumerate();
    let with = with.filter_map(|(at, page)| parts.has_difference(at).then_some(page));
    runs::apply(parts.runs, with, differences * PAGE).ok_or(DAMAGED)?;
    decode_rest(inner, &parts, pages, (count - differences) * PAGE)
}

/// Decodes the pages that have no difference, `len` bytes of them.
fn decode_rest(
    codec: CodecId,
    parts: &Parts<'_>,
    pages: &mut [u8],
    len: usize,
) -> Result<(), CodecError> {
    let mut scratch = Vec::new();
    let content = match codec {
        CodecId::Raw if parts.rest.len() == len => parts.rest,
        CodecId::Raw => return Err(DAMAGED),
        _ if len == 0 => return Err(DAMAGED),
        _ => {
            scratch.resize(len, 0);
            crate::decode(codec, parts.rest, &mut scratch).map_err(|_| DAMAGED)?;
            &scratch
        }
    };
    let without = pages.chunks_exact_mut(PAGE).enumerate();
    let without = without.filter_map(|(at, page)| (!parts.has_difference(at)).then_some(page));
    for (page, content) in without.zip(content.chunks_exact(PAGE)) {
        page.copy_from_slice(content);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
