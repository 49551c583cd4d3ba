//! From a page stream to guest RAM: read a frame, check it, decode it, write its pages.
//!
//! Everything read here is hostile until checked: lengths before memory is taken for them,
//! addresses against RAM, the checksum before decoding, the decoded length exactly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use vmferry_codecs::{CodecError, CodecId, decode};
use vmferry_memory::{GuestRam, MemoryError};
use vmferry_protocol::ids::ChunkId;
use vmferry_protocol::wire::{ChunkHeader, HEADER_PREFIX, WireError, checksum};
use vmferry_protocol::{PAGE_SIZE, PageRange, RamLayout};

const PAGE: usize = PAGE_SIZE as usize;

/// Why a chunk was not applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The stream broke.
    #[error("a page stream was cut")]
    Cut(#[source] std::io::Error),
    /// Bytes that are not a chunk of this migration.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Content that does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Writes received pages to RAM. Shared by the streams, no two of which write the same page at a
/// time.
#[derive(Debug)]
pub struct RamWriter {
    ram: Arc<GuestRam>,
    layout: RamLayout,
    /// For each region a bit a page: content was written, so that a zero page must be too.
    written: Vec<Vec<AtomicU64>>,
}

impl RamWriter {
    /// A writer over RAM that is all zero.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, layout: RamLayout) -> Self {
        let words = |pages: u64| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let written = ram.regions().iter().map(|r| words(r.range.count)).collect();
        Self {
            ram,
            layout,
            written,
        }
    }

    /// Writes the pages of a chunk: `content` encoded as `header` says. `scratch` is memory to
    /// decode in.
    ///
    /// # Errors
    /// [`ApplyError`]; some pages may be written by then.
    pub fn apply(
        &self,
        header: &ChunkHeader,
        content: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), ApplyError> {
        for &range in &header.zero {
            self.clear(range)?;
        }
        let pages = match CodecId::try_from(header.codec)? {
            CodecId::Raw if content.len() == header.raw_len() => content,
            codec => {
                scratch.resize(header.raw_len(), 0);
                if codec == CodecId::Delta {
                    self.read(&header.data, scratch)?;
                }
                decode(codec, content, scratch)?;
                scratch
            }
        };
        let mut rest = pages;
        for &range in &header.data {
            let (here, after) = rest.split_at(range.bytes() as usize);
            self.ram.copy_in(range, here)?;
            self.note(range)?;
            rest = after;
        }
        Ok(())
    }

    /// Reads pages as they are now: what differences are to.
    fn read(&self, ranges: &[PageRange], out: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = out;
        for &range in ranges {
            let (here, after) = rest.split_at_mut(range.bytes() as usize);
            self.ram.copy_out(range, here)?;
            rest = after;
        }
        Ok(())
    }

    /// Marks pages as written.
    fn note(&self, range: PageRange) -> Result<(), MemoryError> {
        self.each_bit(range, |word, bit, _| {
            word.fetch_or(bit, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Zeros the pages that were written; the others are zero, and are best left untouched.
    fn clear(&self, range: PageRange) -> Result<(), MemoryError> {
        self.each_bit(range, |word, bit, gfn| {
            if word.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                self.ram.copy_in(PageRange::new(gfn, 1), &[0; PAGE])?;
            }
            Ok(())
        })
    }

    fn each_bit(
        &self,
        range: PageRange,
        f: impl Fn(&AtomicU64, u64, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let region = self.ram.region_of(range)?;
        let base = self.ram.regions()[region].range.start;
        for gfn in range.frames() {
            let at = gfn - base;
            f(
                &self.written[region][(at / 64) as usize],
                1 << (at % 64),
                gfn,
            )?;
        }
        Ok(())
    }
}

/// Working memory of a stream.
#[derive(Debug, Default)]
pub struct Scratch {
    header: Vec<u8>,
    content: Vec<u8>,
    decoded: Vec<u8>,
}

/// Reads one chunk from `stream` and writes its pages. None where the stream has ended between
/// two chunks.
///
/// # Errors
/// [`ApplyError`]; the stream is of no use then.
pub async fn read_chunk(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    ram: &RamWriter,
    scratch: &mut Scratch,
) -> Result<Option<ChunkId>, ApplyError> {
    let mut prefix = [0; HEADER_PREFIX];
    match stream.read(&mut prefix).await.map_err(ApplyError::Cut)? {
        0 => return Ok(None),
        n => stream
            .read_exact(&mut prefix[n..])
            .await
            .map_err(ApplyError::Cut)?,
    };
    let (len, sum) = ChunkHeader::decode_prefix(prefix)?;
    read_to(stream, &mut scratch.header, len).await?;
    let header = ChunkHeader::decode(&scratch.header, &ram.layout)?;
    // Before anything is taken for what it brings.
    CodecId::try_from(header.codec)?;
    read_to(stream, &mut scratch.content, header.encoded_len as usize).await?;
    if checksum(&scratch.header, &scratch.content) != sum {
        return Err(WireError::Checksum.into());
    }
    ram.apply(&header, &scratch.content, &mut scratch.decoded)?;
    Ok(Some(header.chunk))
}

async fn read_to(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    out: &mut Vec<u8>,
    len: usize,
) -> Result<(), ApplyError> {
    out.resize(len, 0);
    stream.read_exact(out).await.map_err(ApplyError::Cut)?;
    Ok(())
}
