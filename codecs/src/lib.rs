//! Page codecs: zero, raw, lz4, zstd, brotli behind one trait; delta beside them.
//!
//! A codec turns the pages of a chunk into fewer bytes and back. It is chosen by name
//! ([`CodecSpec`]); on the wire it is a number ([`CodecId`]), and every decoder is available at
//! every destination. Nothing here does IO. [`delta`] needs what the destination holds as well as
//! the pages, so it is no [`PageCodec`]: it takes one for the pages that it cannot do. Decoders
//! get hostile input: they write exactly the bytes announced into a buffer that the caller made,
//! or fail.

mod content;
pub mod delta;
mod encoders;
pub mod selector;
mod spec;

use thiserror::Error;

pub use content::Content;
pub use encoders::Encoders;
pub use spec::{CodecChoice, CodecSpec, UnknownCodec};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A codec's number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CodecId {
    /// No content: the pages are zero.
    Zero = 0,
    /// As it is.
    Raw = 1,
    /// LZ4 block format.
    Lz4 = 2,
    /// Zstandard frame.
    Zstd = 3,
    /// Brotli stream.
    Brotli = 4,
    /// Differences to the version that the destination holds; see [`delta`].
    Delta = 5,
}

impl CodecId {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Brotli => "brotli",
            Self::Delta => "delta",
        }
    }
}

impl TryFrom<u8> for CodecId {
    type Error = CodecError;

    fn try_from(id: u8) -> Result<Self, CodecError> {
        [
            Self::Zero,
            Self::Raw,
            Self::Lz4,
            Self::Zstd,
            Self::Brotli,
            Self::Delta,
        ]
        .into_iter()
        .find(|c| *c as u8 == id)
        .ok_or(CodecError::Unknown(id))
    }
}

/// Why bytes could not be encoded or decoded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// A number that no codec has.
    #[error("codec number {0} is not known")]
    Unknown(u8),
    /// Content that does not decode to exactly the bytes announced.
    #[error("{codec} content is damaged or does not have the announced length")]
    Damaged {
        /// The codec.
        codec: &'static str,
    },
    /// The library refused to encode.
    #[error("{codec} could not encode: {detail}")]
    Encode {
        /// The codec.
        codec: &'static str,
        /// The library's words.
        detail: String,
    },
}

/// A codec with its settings and working memory; one per thread.
pub trait PageCodec: Send {
    /// Its number on the wire.
    fn id(&self) -> CodecId;

    /// Appends the encoding of `input` to `out`, if it is shorter than `input`. Returns whether
    /// it is; if not, `out` is as it was and the content is best sent raw.
    ///
    /// # Errors
    /// [`CodecError::Encode`].
    fn encode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError>;
}

struct Raw;

impl PageCodec for Raw {
    fn id(&self) -> CodecId {
        CodecId::Raw
    }
    fn encode(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<bool, CodecError> {
        Ok(false)
    }
}

struct Lz4;

impl PageCodec for Lz4 {
    fn id(&self) -> CodecId {
        CodecId::Lz4
    }
    fn encode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
        let start = out.len();
        out.resize(
            start + lz4_flex::block::get_maximum_output_size(input.len()),
            0,
        );
        let len = lz4_flex::block::compress_into(input, &mut out[start..]).map_err(|e| {
            CodecError::Encode {
                codec: "lz4",
                detail: e.to_string(),
            }
        })?;
        Ok(keep_if_shorter(out, start, len, input.len()))
    }
}

struct Zstd(zstd::bulk::Compressor<'static>);

impl PageCodec for Zstd {
    fn id(&self) -> CodecId {
        CodecId::Zstd
    }
    fn encode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
        let start = out.len();
        out.resize(start + zstd::zstd_safe::compress_bound(input.len()), 0);
        let len = self
            .0
            .compress_to_buffer(input, &mut out[start..])
            .map_err(|e| CodecError::Encode {
                codec: "zstd",
                detail: e.to_string(),
            })?;
        Ok(keep_if_shorter(out, start, len, input.len()))
    }
}

struct Brotli(brotli::enc::BrotliEncoderParams);

impl PageCodec for Brotli {
    fn id(&self) -> CodecId {
        CodecId::Brotli
    }
    fn encode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
        let start = out.len();
        brotli::BrotliCompress(&mut &*input, out, &self.0).map_err(|e| CodecError::Encode {
            codec: "brotli",
            detail: e.to_string(),
        })?;
        let len = out.len() - start;
        Ok(keep_if_shorter(out, start, len, input.len()))
    }
}

fn keep_if_shorter(out: &mut Vec<u8>, start: usize, len: usize, input: usize) -> bool {
    let shorter = len < input;
    out.truncate(if shorter { start + len } else { start });
    shorter
}

/// Makes the encoder that `spec` names.
///
/// # Errors
/// [`CodecError::Encode`] where the library refuses the level.
pub fn encoder(spec: CodecSpec) -> Result<Box<dyn PageCodec>, CodecError> {
    Ok(match spec {
        CodecSpec::Raw => Box::new(Raw),
        CodecSpec::Lz4 => Box::new(Lz4),
        CodecSpec::Zstd(level) => Box::new(Zstd(
            zstd::bulk::Compressor::new(i32::from(level)).map_err(|e| CodecError::Encode {
                codec: "zstd",
                detail: e.to_string(),
            })?,
        )),
        CodecSpec::Brotli(quality) => Box::new(Brotli(brotli::enc::BrotliEncoderParams {
            quality: i32::from(quality),
            // A chunk is at most 256 KiB: a window of 2^18 sees all of it.
            lgwin: 18,
            ..Default::default()
        })),
    })
}

/// Decodes `input` into exactly all of `out`. For [`CodecId::Delta`], `out` holds the pages that
/// the differences are to; for the others, what it holds does not count.
///
/// # Errors
/// [`CodecError::Damaged`] where it is not exactly that, and from delta [`CodecError::Unknown`]
/// for a codec within that there is not; `out` may be written to in part.
pub fn decode(codec: CodecId, input: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let damaged = CodecError::Damaged {
        codec: codec.name(),
    };
    let whole = match codec {
        CodecId::Zero => {
            out.fill(0);
            input.is_empty()
        }
        CodecId::Raw => {
            let same = input.len() == out.len();
            if same {
                out.copy_from_slice(input);
            }
            same
        }
        CodecId::Lz4 => lz4_flex::block::decompress_into(input, out).is_ok_and(|n| n == out.len()),
        CodecId::Zstd => zstd::bulk::decompress_to_buffer(input, out).is_ok_and(|n| n == out.len()),
        CodecId::Brotli => decode_brotli(input, out),
        CodecId::Delta => return delta::decode(input, out),
    };
    if whole { Ok(()) } else { Err(damaged) }
}

/// All at once, as the reader of the library does not tell of bytes left over at the end.
fn decode_brotli(input: &[u8], out: &mut [u8]) -> bool {
    use brotli::enc::StandardAlloc as Alloc;
    if !input.first().is_some_and(|&b| has_small_window(b)) {
        return false;
    }
    let (mut input_left, mut input_at) = (input.len(), 0);
    let (mut out_left, mut out_at, mut total) = (out.len(), 0, 0);
    let mut state =
        brotli::BrotliState::new_strict(Alloc::default(), Alloc::default(), Alloc::default());
    let result = brotli::BrotliDecompressStream(
        &mut input_left,
        &mut input_at,
        input,
        &mut out_left,
        &mut out_at,
        out,
        &mut total,
        &mut state,
    );
    matches!(result, brotli::BrotliResult::ResultSuccess) && input_left == 0 && out_left == 0
}

/// Whether a Brotli stream that begins with `byte` has a window of at most 2^18, as encoders here
/// use: a decoder takes memory for as much as the stream claims. RFC 7932, section 9.1.
const fn has_small_window(byte: u8) -> bool {
    match (byte & 1, byte >> 1 & 7, byte >> 4 & 7) {
        (0, ..) | (_, 1, _) => true,
        // The last of these is not in the RFC: the library's own, of up to 2^30.
        (_, 0, small) => small != 1,
        _ => false,
    }
}

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    // A register's width at a time, many of them before looking: the compiler makes it vectors.
    let mut blocks = page.chunks_exact(256);
    blocks
        .by_ref()
        .all(|b| b.iter().fold(0, |acc, byte| acc | byte) == 0)
        && blocks.remainder().iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests;
