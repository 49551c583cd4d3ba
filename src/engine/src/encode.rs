//! From guest pages to a frame on a page stream: protect, copy, leave zeros out, compress.
//!
//! The order matters: a page is protected before it is read, so that a write that comes while it
//! is being read is in the next harvest. What is judged and sent is the copy, never the page again.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use vmferry_codecs::{CodecError, CodecId, is_zero};
use vmferry_memory::{GuestRam, MemoryError};
use vmferry_protocol::pending::Chunk;
use vmferry_protocol::source::ChunkStats;
use vmferry_protocol::wire::{ChunkHeader, MAX_ENCODED, WireError};
use vmferry_protocol::{PAGE_SIZE, PageRange};
use vmferry_tracker::{DirtyTracker, TrackerError};

use crate::buffers::Buffers;
use crate::compression::{Compression, Pages, Workspace};
use crate::fingerprints::Fingerprints;
use crate::processors::priority::WorkTimer;

const PAGE: usize = PAGE_SIZE as usize;

/// Why a chunk could not be made into a frame.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The pages could not be protected.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// The codec.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The header.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A chunk as it travels.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Prefix and header.
    pub head: Bytes,
    /// Encoded pages; empty where all were zero.
    pub content: Bytes,
    /// What it is made of.
    pub stats: ChunkStats,
}

/// What became of a chunk.
#[derive(Clone, Debug)]
pub enum Encoded {
    /// To be sent.
    Frame(Frame),
    /// The destination has all of it.
    Unchanged(ChunkStats),
}

/// Makes frames; one for each thread.
pub struct Encoder {
    ram: Arc<GuestRam>,
    tracker: Arc<dyn DirtyTracker>,
    compression: Arc<Compression>,
    space: Workspace,
    gfns: Vec<u64>,
    buffers: Buffers,
    /// What was last sent, where that is compared.
    sent: Option<Arc<Fingerprints>>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder of `ram`'s pages; with `sent`, of those only that differ from what was sent.
    #[must_use]
    pub fn new(
        ram: Arc<GuestRam>,
        tracker: Arc<dyn DirtyTracker>,
        compression: Arc<Compression>,
        buffers: Buffers,
        sent: Option<Arc<Fingerprints>>,
    ) -> Self {
        Self {
            ram,
            tracker,
            compression,
            space: Workspace::default(),
            gfns: Vec::new(),
            buffers,
            sent,
        }
    }

    /// Protects the pages of `chunk`: writes from here on are in the next harvest. Comes before
    /// [`Self::encode`], unless nothing will be written any more.
    ///
    /// # Errors
    /// [`EncodeError::Tracker`]; some pages may be protected by then.
    pub fn protect(&self, chunk: &Chunk) -> Result<(), EncodeError> {
        for &range in &chunk.ranges {
            self.tracker.protect(range)?;
        }
        Ok(())
    }

    /// Reads and encodes the pages of `chunk`; `last` where they will not be sent again.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&mut self, chunk: &Chunk, last: bool) -> Result<Encoded, EncodeError> {
        let timer = WorkTimer::start();
        let mut pages = self.buffers.take(MAX_ENCODED);
        let (zero, data) = self.read(&chunk.ranges, &mut pages)?;
        let read = timer.worked();
        let count = |ranges: &[PageRange]| ranges.iter().map(|r| r.count).sum::<u64>();
        let (pages_zero, pages_data) = (count(&zero), count(&data));
        let mut stats = ChunkStats {
            chunk: chunk.id,
            bytes_wire: 0,
            bytes_encoded: 0,
            codec: CodecId::Zero as u8,
            pages_data,
            pages_zero,
            pages_unchanged: chunk.pages() - pages_zero - pages_data,
            read: read.took,
            read_ran: read.ran,
        };
        if stats.pages_unchanged == chunk.pages() {
            drop(self.buffers.share(pages));
            return Ok(Encoded::Unchanged(stats));
        }
        let zeros = zero.iter().flat_map(PageRange::frames);
        self.compression.zero(chunk.pass, zeros);
        self.gfns.clear();
        self.gfns.extend(data.iter().flat_map(PageRange::frames));
        let (codec, content) = self.compress(chunk.pass, last, pages)?;
        let header = ChunkHeader {
            chunk: chunk.id,
            pass: chunk.pass,
            codec: codec as u8,
            zero,
            data,
            encoded_len: content.len() as u32,
        };
        let head = header.encode(&content)?;
        stats.codec = codec as u8;
        stats.bytes_encoded = content.len() as u64;
        stats.bytes_wire = (head.len() + content.len()) as u64;
        Ok(Encoded::Frame(Frame {
            stats,
            head: head.into(),
            content,
        }))
    }

    /// Copies the pages that are to be sent and not zero to `out`, and says which are which.
    fn read(
        &self,
        ranges: &[PageRange],
        out: &mut Vec<u8>,
    ) -> Result<(Vec<PageRange>, Vec<PageRange>), MemoryError> {
        let (mut zero, mut data) = (Vec::new(), Vec::new());
        for gfn in ranges.iter().flat_map(PageRange::frames) {
            let start = out.len();
            out.resize(start + PAGE, 0);
            self.ram
                .copy_out(PageRange::new(gfn, 1), &mut out[start..])?;
            let content = Some(&out[start..]).filter(|page| !is_zero(page));
            let changed = match &self.sent {
                Some(sent) => sent.changed(gfn, content)?,
                None => true,
            };
            let list = match content {
                Some(_) => &mut data,
                None => &mut zero,
            };
            if changed {
                add(list, gfn);
            }
            if content.is_none() || !changed {
                out.truncate(start);
            }
        }
        Ok((zero, data))
    }

    fn compress(
        &mut self,
        pass: u32,
        last: bool,
        pages: Vec<u8>,
    ) -> Result<(CodecId, Bytes), CodecError> {
        if pages.is_empty() {
            return Ok((CodecId::Zero, self.buffers.share(pages)));
        }
        let mut out = self.buffers.take(MAX_ENCODED);
        let of_chunk = Pages {
            pass,
            last,
            gfns: &self.gfns,
            bytes: &pages,
        };
        let codec = self
            .compression
            .encode(of_chunk, &mut self.space, &mut out)?;
        let (content, spare) = match codec {
            CodecId::Raw => (pages, out),
            _ => (out, pages),
        };
        drop(self.buffers.share(spare));
        Ok((codec, self.buffers.share(content)))
    }
}

/// Adds a page to a list of runs that ascends.
fn add(ranges: &mut Vec<PageRange>, gfn: u64) {
    match ranges.last_mut() {
        Some(last) if last.end() == gfn => last.count += 1,
        _ => ranges.push(PageRange::new(gfn, 1)),
    }
}
