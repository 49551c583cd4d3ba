//! The bytes of a session that are on their way out.

use std::collections::VecDeque;

use super::jobs::{Jobs, Piece};
use super::proto::Transmission;

/// Bytes that are put together before they are written.
pub(super) const OUTGOING: usize = 256 << 10;
/// A request of which no byte was written: its index, and where it begins in the outgoing bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untouched {
    pub(super) index: usize,
    pub(super) start: usize,
}

/// The outgoing bytes.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
    pub(super) untouched: VecDeque<Untouched>,
    /// The last request is a write whose payload from this byte on is still to be added.
    pub(super) payload: Option<(Piece, u64)>,
    /// The session's end is to be announced after it.
    pub(super) goodbye: bool,
}

impl Outgoing {
    /// So many bytes more were written.
    pub(super) fn wrote(&mut self, len: usize) {
        self.written += len;
        while self
            .untouched
            .front()
            .is_some_and(|u| u.start < self.written)
        {
            self.untouched.pop_front();
        }
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
    }

    /// Adds the payload of the last request, as far as there is room, or else the goodbye.
    pub(super) fn fill(&mut self, jobs: &Jobs) {
        let Some((piece, from)) = self.payload else {
            if std::mem::take(&mut self.goodbye) {
                let bytes = Transmission::<Piece>::disconnect();
                self.bytes.extend_from_slice(&bytes);
            }
            return;
        };
        let left = piece.extent.len - from;
        let start = self.bytes.len();
        let len = OUTGOING.saturating_sub(start).min(left as usize);
        self.bytes.resize(start + len, 0);
        let at = piece.extent.offset + from;
        jobs.copy_out(piece.job, at, &mut self.bytes[start..]);
        let from = from + len as u64;
        self.payload = (from < piece.extent.len).then_some((piece, from));
    }
}
