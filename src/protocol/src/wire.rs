//! Bytes on the wire: frames of the control stream and headers of the page streams.
//!
//! Everything decoded here is hostile until checked: lengths before allocation, counts against
//! limits, addresses against the RAM layout. docs/protocol.md describes the formats.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use twox_hash::XxHash3_64;

use crate::ids::{ChunkId, MigrationId, Token};
use crate::message::Message;
use crate::pages::{PAGE_SIZE, PageRange, RamLayout};

/// Longest body of a control frame, in bytes.
pub const MAX_CONTROL: usize = 16 << 20;
/// The same for every message but `State`: a few bytes on the wire can stand for many in memory.
pub const MAX_SMALL: usize = 2 << 20;
/// Most pages with content in a chunk: 256 KiB.
pub const MAX_DATA_PAGES: u64 = 64;
/// Most pages in a chunk, zero pages included.
pub const MAX_CHUNK_PAGES: u64 = 512;
/// Most runs of pages in a chunk, each of zero and of content.
pub const MAX_RANGES: usize = 64;
/// Longest encoded content of a chunk: raw size, as a codec that does not shrink is not used.
pub const MAX_ENCODED: usize = (MAX_DATA_PAGES * PAGE_SIZE) as usize;
/// Longest encoded chunk header, in bytes.
pub const MAX_HEADER: usize = 8 << 10;
/// Length of the page-stream preamble, in bytes.
pub const PREAMBLE: usize = 44;

const PREAMBLE_MAGIC: [u8; 8] = *b"vmferry1";

/// Bytes that are not what they should be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A frame longer than allowed.
    #[error("a frame of {got} bytes, at most {max} are allowed")]
    TooLong {
        /// Announced.
        got: usize,
        /// Allowed.
        max: usize,
    },
    /// Not decodable, or bytes left over.
    #[error("a frame that cannot be decoded")]
    Malformed,
    /// A chunk header that breaks a limit, named.
    #[error("a chunk header with {0}")]
    Header(&'static str),
    /// Pages outside of RAM.
    #[error("a chunk with pages outside of RAM: {start:#x}+{count:#x}")]
    OutsideRam {
        /// First frame.
        start: u64,
        /// Count.
        count: u64,
    },
    /// A checksum that does not fit.
    #[error("a chunk that was damaged on the way")]
    Checksum,
    /// Not a page stream of this migration.
    #[error("a page stream of another migration or version")]
    Preamble,
}

/// A control frame: four bytes of length (little endian), then the message.
///
/// # Errors
/// [`WireError::TooLong`] for a state blob larger than the limit.
pub fn encode(message: &Message) -> Result<Vec<u8>, WireError> {
    let body = postcard::to_stdvec(message).map_err(|_| WireError::Malformed)?;
    let max = longest(&body);
    if body.len() > max {
        return Err(WireError::TooLong {
            got: body.len(),
            max,
        });
    }
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The kind of message is the first byte of its body. Tested: it moves when kinds are added.
const STATE_KIND: u8 = 6;

fn longest(body: &[u8]) -> usize {
    if body.first() == Some(&STATE_KIND) {
        MAX_CONTROL
    } else {
        MAX_SMALL
    }
}

/// Puts control frames together from whatever pieces arrive.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
}

impl FrameDecoder {
    /// Adds bytes that have arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`WireError`]; the stream is of no use then.
    pub fn next_message(&mut self) -> Result<Option<Message>, WireError> {
        let Some(head) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*head) as usize;
        if len > MAX_CONTROL {
            return Err(WireError::TooLong {
                got: len,
                max: MAX_CONTROL,
            });
        }
        let max = longest(&self.buffer[4..]);
        if self.buffer.len() > 4 && len > max {
            return Err(WireError::TooLong { got: len, max });
        }
        let Some(body) = self.buffer.get(4..4 + len) else {
            return Ok(None);
        };
        let (message, rest) = postcard::take_from_bytes(body).map_err(|_| WireError::Malformed)?;
        if !rest.is_empty() {
            return Err(WireError::Malformed);
        }
        self.buffer.drain(..4 + len);
        Ok(Some(message))
    }
}

/// What begins each page stream: it ties the stream to its migration.
#[must_use]
pub fn encode_preamble(migration: MigrationId, token: &Token, stream: u16) -> [u8; PREAMBLE] {
    let mut out = [0; PREAMBLE];
    out[..8].copy_from_slice(&PREAMBLE_MAGIC);
    out[8..24].copy_from_slice(&migration.0);
    out[24..40].copy_from_slice(token.bits());
    out[40..42].copy_from_slice(&stream.to_le_bytes());
    out
}

/// Checks a preamble; returns the stream's number.
///
/// # Errors
/// [`WireError::Preamble`].
pub fn check_preamble(
    bytes: &[u8; PREAMBLE],
    migration: MigrationId,
    token: &Token,
) -> Result<u16, WireError> {
    let mut shown = [0; 16];
    shown.copy_from_slice(&bytes[24..40]);
    let ok = bytes[..8] == PREAMBLE_MAGIC
        && bytes[8..24] == migration.0
        && Token::new(shown).matches(token)
        && bytes[42..] == [0; 2];
    if ok {
        Ok(u16::from_le_bytes([bytes[40], bytes[41]]))
    } else {
        Err(WireError::Preamble)
    }
}

/// The token that a preamble shows, whatever else is in it.
#[must_use]
pub fn preamble_token(bytes: &[u8; PREAMBLE]) -> Token {
    let mut token = [0; 16];
    token.copy_from_slice(&bytes[24..40]);
    Token::new(token)
}

/// What a chunk holds; its encoded content follows it on the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHeader {
    /// Its number.
    pub chunk: ChunkId,
    /// The pass it belongs to.
    pub pass: u32,
    /// The codec that its content is encoded with.
    pub codec: u8,
    /// Pages that are zero.
    pub zero: Vec<PageRange>,
    /// Pages whose content follows, in this order.
    pub data: Vec<PageRange>,
    /// Bytes of encoded content that follow.
    pub encoded_len: u32,
}

/// Bytes before the header: its length and the checksum of header and content.
pub const HEADER_PREFIX: usize = 12;

impl ChunkHeader {
    /// Bytes of the pages with content.
    #[must_use]
    pub fn raw_len(&self) -> usize {
        self.data.iter().map(|r| r.bytes()).sum::<u64>() as usize
    }

    /// Pages, zero ones included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.zero.iter().chain(&self.data).map(|r| r.count).sum()
    }

    /// Length (4 bytes), checksum (8 bytes), header. The content goes after it.
    ///
    /// # Errors
    /// [`WireError`] where the header breaks its own limits.
    pub fn encode(&self, content: &[u8]) -> Result<Vec<u8>, WireError> {
        self.check_limits()?;
        if content.len() != self.encoded_len as usize {
            return Err(WireError::Header("another length than its content"));
        }
        let body = postcard::to_stdvec(self).map_err(|_| WireError::Malformed)?;
        if body.len() > MAX_HEADER {
            return Err(WireError::Header("too many bytes"));
        }
        let mut out = Vec::with_capacity(HEADER_PREFIX + body.len());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&checksum(&body, content).to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Length of the header and checksum, from the prefix.
    ///
    /// # Errors
    /// [`WireError::TooLong`].
    pub fn decode_prefix(prefix: [u8; HEADER_PREFIX]) -> Result<(usize, u64), WireError> {
        let [a, b, c, d, sum @ ..] = prefix;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > MAX_HEADER {
            return Err(WireError::TooLong {
                got: len,
                max: MAX_HEADER,
            });
        }
        Ok((len, u64::from_le_bytes(sum)))
    }

    /// Decodes a header and checks it against its limits and `layout`.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &[u8], layout: &RamLayout) -> Result<Self, WireError> {
        let (header, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|_| WireError::Malformed)?;
        if !rest.is_empty() {
            return Err(WireError::Malformed);
        }
        header.check_limits()?;
        for range in header.zero.iter().chain(&header.data) {
            if !layout.covers(range) {
                return Err(WireError::OutsideRam {
                    start: range.start,
                    count: range.count,
                });
            }
        }
        Ok(header)
    }

    fn check_limits(&self) -> Result<(), WireError> {
        if self.zero.len() > MAX_RANGES || self.data.len() > MAX_RANGES {
            return Err(WireError::Header("too many ranges"));
        }
        if !disjoint(&self.zero, &self.data) {
            return Err(WireError::Header("ranges that overlap or are out of order"));
        }
        let sum = |ranges: &[PageRange]| {
            ranges
                .iter()
                .fold(0u64, |sum, r| sum.saturating_add(r.count))
        };
        let data = sum(&self.data);
        if data > MAX_DATA_PAGES || data.saturating_add(sum(&self.zero)) > MAX_CHUNK_PAGES {
            return Err(WireError::Header("too many pages"));
        }
        if self.encoded_len as usize > MAX_ENCODED || (data == 0) != (self.encoded_len == 0) {
            return Err(WireError::Header("content that does not fit its pages"));
        }
        Ok(())
    }
}

/// Whether both lists ascend, and no page is in them twice: what a page holds in the end must not
/// depend on the order in which it is written.
fn disjoint(zero: &[PageRange], data: &[PageRange]) -> bool {
    let ascending = |ranges: &[PageRange]| ranges.windows(2).all(|w| w[0].end() <= w[1].start);
    let apart = |a: &PageRange| {
        data.iter()
            .all(|b| a.end() <= b.start || b.end() <= a.start)
    };
    ascending(zero) && ascending(data) && zero.iter().all(apart)
}

/// The checksum that travels with a chunk: xxh3-64 over header and content.
#[must_use]
pub fn checksum(header: &[u8], content: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(header), content)
}

/// The digest of a state blob: xxh3-64.
#[must_use]
pub fn digest(blob: &[u8]) -> u64 {
    XxHash3_64::oneshot(blob)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> ChunkHeader {
        ChunkHeader {
            chunk: ChunkId(7),
            pass: 1,
            codec: 2,
            zero: vec![PageRange::new(3, 4)],
            data: vec![PageRange::new(0, 2), PageRange::new(8, 1)],
            encoded_len: 5,
        }
    }

    fn layout() -> RamLayout {
        RamLayout::try_from(vec![PageRange::new(0, 1024)]).unwrap()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = [
            Message::Accept,
            Message::Ack {
                chunks: vec![ChunkId(1), ChunkId(u64::MAX)],
            },
            Message::State {
                blob: vec![5; 3000],
                digest: 9,
            },
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        for step in [1, 7, bytes.len()] {
            let mut decoder = FrameDecoder::default();
            let mut out = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.feed(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    out.push(message);
                }
            }
            assert_eq!(out, messages);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let mut decoder = FrameDecoder::default();
        decoder.feed(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.next_message(),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn only_the_state_may_be_long() {
        let state = Message::State {
            blob: vec![0; MAX_SMALL + 1],
            digest: 0,
        };
        let frame = encode(&state).unwrap();
        assert_eq!(frame[4], STATE_KIND);
        let mut decoder = FrameDecoder::default();
        decoder.feed(&frame);
        assert_eq!(decoder.next_message(), Ok(Some(state)));
        let acks = Message::Ack {
            chunks: vec![ChunkId(1); MAX_SMALL + 1],
        };
        assert!(matches!(encode(&acks), Err(WireError::TooLong { .. })));
        // The first byte of the body is enough to know.
        let mut decoder = FrameDecoder::default();
        decoder.feed(&(MAX_SMALL as u32 + 1).to_le_bytes());
        assert_eq!(decoder.next_message(), Ok(None));
        decoder.feed(&[STATE_KIND - 1]);
        assert!(decoder.next_message().is_err());
    }

    #[test]
    fn headers_come_out_as_they_went_in() {
        let bytes = header().encode(b"12345").unwrap();
        let (len, sum) = ChunkHeader::decode_prefix(*bytes.first_chunk().unwrap()).unwrap();
        let body = &bytes[HEADER_PREFIX..];
        assert_eq!(body.len(), len);
        assert_eq!(ChunkHeader::decode(body, &layout()), Ok(header()));
        assert_eq!(sum, checksum(body, b"12345"));
        assert_ne!(sum, checksum(body, b"12346"));
    }

    #[test]
    fn headers_beyond_limits_or_ram_are_refused() {
        let refused = |change: fn(&mut ChunkHeader)| {
            let mut h = header();
            change(&mut h);
            let body = postcard::to_stdvec(&h).unwrap();
            ChunkHeader::decode(&body, &layout()).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|h| h.data[0].start = 1023));
        assert!(refused(|h| h.zero[0].count = u64::MAX));
        assert!(refused(|h| h.zero[0].count = 0));
        assert!(refused(|h| h.data[0].count = 65));
        assert!(refused(|h| h.encoded_len = u32::MAX));
        assert!(refused(|h| h.encoded_len = 0));
        assert!(refused(|h| h.zero = vec![PageRange::new(0, 1); 65]));
        assert!(refused(|h| h.data.reverse()));
        assert!(refused(|h| h.zero[0] = h.data[0]));
        assert!(refused(
            |h| h.zero = vec![PageRange::new(20, 2), PageRange::new(21, 2)]
        ));
    }

    #[test]
    fn preambles_of_another_migration_or_token_are_refused() {
        let (m, t) = (MigrationId([1; 16]), Token::new([2; 16]));
        let bytes = encode_preamble(m, &t, 3);
        assert_eq!(check_preamble(&bytes, m, &t), Ok(3));
        assert!(check_preamble(&bytes, MigrationId([9; 16]), &t).is_err());
        assert!(check_preamble(&bytes, m, &Token::new([9; 16])).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = FrameDecoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
            let _ = ChunkHeader::decode(&bytes, &layout());
        }
    }
}
