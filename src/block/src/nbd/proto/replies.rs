//! Answers to options: what they say, once their lengths are known to be right.

use super::{BlockSizes, MAX_STRING, Violation, be16, be32, be64};

/// Bytes of the header of an answer.
pub(super) const HEADER: usize = 20;
/// Longest answer that is read: a string with a few numbers before it, with room to spare.
const MAX_LEN: usize = MAX_STRING + 256;
const MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Error types of answers.
pub(super) mod error {
    pub(in super::super) const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub(in super::super) const TLS_REQUIRED: u32 = 1 << 31 | 5;
    pub(in super::super) const UNKNOWN: u32 = 1 << 31 | 6;
}

/// Header of an answer to an option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    kind: u32,
    /// Bytes that follow.
    pub(super) len: usize,
}

/// An answer to an option.
#[derive(Debug)]
pub(super) enum Reply {
    /// Done; the last answer.
    Ack,
    /// An export's name, listed.
    Server(String),
    /// Its size and transmission flags.
    Export(u64, u16),
    /// Its sizes of requests.
    Sizes(BlockSizes),
    /// Something that we have not asked for, and do not mind.
    Other,
    /// No, with the reason's number and the server's words; the last answer.
    Error(u32, String),
}

impl Header {
    /// Reads [`HEADER`] bytes of an answer to `option`.
    pub(super) fn parse(bytes: &[u8], option: u32) -> Result<Self, Violation> {
        let short = Violation("a header is short");
        if be64(bytes, 0) != Some(MAGIC) {
            return Err(Violation("an answer does not begin as one"));
        }
        if be32(bytes, 8) != Some(option) {
            return Err(Violation("it answers what was not asked"));
        }
        let kind = be32(bytes, 12).ok_or(short)?;
        let len = be32(bytes, 16).ok_or(short)? as usize;
        if len > MAX_LEN {
            return Err(Violation("an answer is too long"));
        }
        Ok(Self { kind, len })
    }

    /// Reads the bytes that follow.
    pub(super) fn body(self, body: &[u8]) -> Result<Reply, Violation> {
        let short = Violation("an answer is short");
        match self.kind {
            1 if body.is_empty() => Ok(Reply::Ack),
            1 => Err(Violation("an acknowledgement says more than yes")),
            2 => {
                let len = be32(body, 0).ok_or(short)? as usize;
                let name = body.get(4..).and_then(|b| b.get(..len)).ok_or(short)?;
                Ok(Reply::Server(words(name)))
            }
            3 => info(body),
            kind if kind >> 31 == 1 => Ok(Reply::Error(kind, words(body))),
            _ => Err(Violation("an answer is of no known kind")),
        }
    }
}

fn info(body: &[u8]) -> Result<Reply, Violation> {
    let short = Violation("an information is short");
    match (be16(body, 0).ok_or(short)?, body.len()) {
        (0, 12) => {
            let bytes = be64(body, 2).ok_or(short)?;
            Ok(Reply::Export(bytes, be16(body, 10).ok_or(short)?))
        }
        (3, 14) => {
            let size = |at| be32(body, at).ok_or(short);
            BlockSizes::checked(size(2)?, size(6)?, size(10)?).map(Reply::Sizes)
        }
        (0 | 3, _) => Err(Violation("an information has the wrong length")),
        _ => Ok(Reply::Other),
    }
}

/// A server's words, fit to be shown: no control characters, not too many.
pub(super) fn words(bytes: &[u8]) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_STRING)]);
    text.trim().chars().map(shown).take(200).collect()
}
