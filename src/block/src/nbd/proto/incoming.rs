//! What a server sends in a session: simple replies, and structured ones chunk by chunk.

use super::replies::words;
use super::transmission::{Command, Event, Transmission};
use super::{MAX_STRING, Violation, be16, be32, be64};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const SIMPLE_HEADER: usize = 16;
const STRUCTURED_HEADER: usize = 20;
const FLAG_DONE: u16 = 1;
/// Longest error chunk: number, length of the words, words, offset.
const MAX_ERROR: u32 = 4 + 2 + MAX_STRING as u32 + 8;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const ERROR_OFFSET: u16 = 1 << 15 | 2;
const ERROR_BIT: u16 = 1 << 15;

/// Where in the server's bytes we are.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// In a header.
    Header,
    /// In the fixed part of a chunk (or all of an error chunk).
    Chunk(Chunk),
    /// In the data of a reply.
    Data(Data),
}

/// Header of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    slot: usize,
    done: bool,
    kind: u16,
    len: u32,
}

/// Data that is coming, none of which is outside the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    slot: usize,
    /// Of the next byte, in the export.
    offset: u64,
    left: u32,
    /// The reply is over with it.
    done: bool,
}

type Received<'a, T> = Result<(usize, Option<Event<'a, T>>), Violation>;

impl<T: Copy> Transmission<T> {
    /// Takes bytes from the server, from the beginning of `bytes`: up to the first event, if
    /// there is one. Returns how many, and the event. To be called again with what is left, even
    /// if that is nothing, until there is no event.
    ///
    /// # Errors
    /// [`Violation`]: nothing that follows makes sense. Not to be called again.
    pub fn receive<'a>(&mut self, bytes: &'a [u8]) -> Received<'a, T> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            let (used, event) = match self.state {
                State::Data(data) if data.left == 0 => {
                    self.state = State::Header;
                    (
                        0,
                        if data.done {
                            Some(self.end(data.slot)?)
                        } else {
                            None
                        },
                    )
                }
                _ if rest.is_empty() => return Ok((taken, None)),
                State::Header => (self.header(rest)?, None),
                State::Chunk(chunk) => self.chunk(chunk, rest)?,
                State::Data(data) => self.data(data, rest)?,
            };
            taken += used;
            if event.is_some() {
                return Ok((taken, event));
            }
        }
    }

    /// Collects `want` bytes in [`Self::partial`]. Returns how many were taken, and whether all
    /// are there.
    fn collect(&mut self, want: usize, bytes: &[u8]) -> (usize, bool) {
        let used = bytes.len().min(want.saturating_sub(self.partial.len()));
        self.partial.extend_from_slice(&bytes[..used]);
        (used, self.partial.len() >= want)
    }

    fn header(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let (mut used, whole) = self.collect(SIMPLE_HEADER, bytes);
        if !whole {
            return Ok(used);
        }
        match be32(&self.partial, 0) {
            Some(SIMPLE_MAGIC) => self.simple()?,
            Some(STRUCTURED_MAGIC) if self.structured => {
                let (more, whole) = self.collect(STRUCTURED_HEADER, &bytes[used..]);
                used += more;
                if !whole {
                    return Ok(used);
                }
                self.structured()?;
            }
            Some(STRUCTURED_MAGIC) => {
                return Err(Violation("it sends chunks, which it has not agreed to"));
            }
            _ => return Err(Violation("a reply does not begin as one")),
        }
        self.partial.clear();
        Ok(used)
    }

    /// The slot of the request with the name that stands at byte 8.
    fn named(&self) -> Result<usize, Violation> {
        let unknown = Violation("it answers a request that is not in flight");
        let cookie = be64(&self.partial, 8).ok_or(unknown)?;
        let index = (cookie & u64::from(u32::MAX)) as usize;
        let slot = self.slots.get(index).ok_or(unknown)?;
        let known = slot.request.is_some() && u64::from(slot.uses) == cookie >> 32;
        known.then_some(index).ok_or(unknown)
    }

    fn simple(&mut self) -> Result<(), Violation> {
        let index = self.named()?;
        let slot = &mut self.slots[index];
        slot.error = errno(be32(&self.partial, 4).unwrap_or(0));
        let mut data = Data {
            slot: index,
            offset: 0,
            left: 0,
            done: true,
        };
        if let Some(request) = &slot.request
            && request.command == Command::Read
            && slot.error.is_none()
        {
            if self.structured {
                return Err(Violation(
                    "it answers a read without chunks, against its word",
                ));
            }
            slot.covered.add(0, request.len)?;
            (data.offset, data.left) = (request.offset, request.len);
        }
        self.state = State::Data(data);
        Ok(())
    }

    fn structured(&mut self) -> Result<(), Violation> {
        let short = Violation("a chunk is short");
        let slot = self.named()?;
        let flags = be16(&self.partial, 4).ok_or(short)?;
        let kind = be16(&self.partial, 6).ok_or(short)?;
        let len = be32(&self.partial, 16).ok_or(short)?;
        let done = flags & FLAG_DONE != 0;
        if flags & !FLAG_DONE != 0 {
            return Err(Violation("a chunk has flags that do not exist"));
        }
        let request = self.slots[slot].request.as_ref().ok_or(short)?;
        let read = request.command == Command::Read;
        match kind {
            NONE if len == 0 && done => {
                // Nothing follows: over at once.
                self.state = State::Data(Data {
                    slot,
                    offset: 0,
                    left: 0,
                    done,
                });
                return Ok(());
            }
            NONE => return Err(Violation("an empty chunk is not empty, or not the last")),
            OFFSET_DATA if read && len > 8 && len - 8 <= request.len => {}
            OFFSET_HOLE if read && len == 12 => {}
            OFFSET_DATA | OFFSET_HOLE => {
                return Err(Violation("a chunk of data has a length that cannot be"));
            }
            kind if kind & ERROR_BIT != 0 && (6..=MAX_ERROR).contains(&len) => {}
            kind if kind & ERROR_BIT != 0 => {
                return Err(Violation("an error has a length that cannot be"));
            }
            _ => return Err(Violation("a chunk is of a kind that was not asked for")),
        }
        self.state = State::Chunk(Chunk {
            slot,
            done,
            kind,
            len,
        });
        Ok(())
    }

    fn chunk<'a>(&mut self, chunk: Chunk, bytes: &'a [u8]) -> Received<'a, T> {
        let fixed = match chunk.kind {
            OFFSET_DATA => 8,
            _ => chunk.len as usize,
        };
        let (used, whole) = self.collect(fixed, bytes);
        if !whole {
            return Ok((used, None));
        }
        let mut data = Data {
            slot: chunk.slot,
            offset: 0,
            left: 0,
            done: chunk.done,
        };
        let mut event = None;
        match chunk.kind {
            OFFSET_DATA => {
                data.left = chunk.len - 8;
                data.offset = self.cover(chunk.slot, data.left)?.1;
            }
            OFFSET_HOLE => {
                let len = be32(&self.partial, 8).unwrap_or(0);
                let (tag, offset) = self.cover(chunk.slot, len)?;
                event = Some(Event::Hole { tag, offset, len });
            }
            kind => self.error(chunk.slot, kind)?,
        }
        self.partial.clear();
        self.state = State::Data(data);
        Ok((used, event))
    }

    /// Notes that `len` bytes of a read come, from the offset on that stands at byte 0.
    fn cover(&mut self, slot: usize, len: u32) -> Result<(T, u64), Violation> {
        let outside = Violation("it sends bytes outside of what was asked for");
        let offset = be64(&self.partial, 0).ok_or(outside)?;
        let slot = &mut self.slots[slot];
        let request = slot.request.as_ref().ok_or(outside)?;
        let start = offset.checked_sub(request.offset).ok_or(outside)?;
        let start = u32::try_from(start).map_err(|_| outside)?;
        let end = start.checked_add(len).ok_or(outside)?;
        if end > request.len || len == 0 {
            return Err(outside);
        }
        slot.covered.add(start, end)?;
        Ok((request.tag, offset))
    }

    fn error(&mut self, slot: usize, kind: u16) -> Result<(), Violation> {
        let wrong = Violation("an error is not made as one");
        let number = be32(&self.partial, 0).ok_or(wrong)?;
        let len = usize::from(be16(&self.partial, 4).ok_or(wrong)?);
        let text = self.partial.get(6..6 + len).ok_or(wrong)?;
        let slot = &mut self.slots[slot];
        if kind == ERROR_OFFSET {
            let request = slot.request.as_ref().ok_or(wrong)?;
            let at = be64(&self.partial, 6 + len).ok_or(wrong)?;
            let within = at.checked_sub(request.offset);
            if within.is_none_or(|at| at >= u64::from(request.len)) {
                return Err(Violation("an error is outside of what was asked for"));
            }
        }
        let error = errno(number).ok_or(Violation("an error is none"))?;
        tracing::debug!(
            error,
            words = words(text),
            "the NBD server reports an error"
        );
        slot.error.get_or_insert(error);
        Ok(())
    }

    fn data<'a>(&mut self, mut data: Data, bytes: &'a [u8]) -> Received<'a, T> {
        let len = bytes.len().min(data.left as usize);
        let gone = Violation("data for a request that is gone");
        let tag = self.slots[data.slot].request.as_ref().ok_or(gone)?.tag;
        let event = Event::Data {
            tag,
            offset: data.offset,
            bytes: &bytes[..len],
        };
        data.offset += len as u64;
        data.left -= len as u32;
        self.state = State::Data(data);
        Ok((len, Some(event)))
    }

    fn end<'a>(&mut self, index: usize) -> Result<Event<'a, T>, Violation> {
        let slot = &self.slots[index];
        let error = slot.error;
        let gone = Violation("it ends a request that is gone");
        let request = slot.request.as_ref().ok_or(gone)?;
        if request.command == Command::Read
            && error.is_none()
            && !slot.covered.is_whole(request.len)
        {
            return Err(Violation("a read has ended before all of it has come"));
        }
        let tag = request.tag;
        self.withdraw(index);
        Ok(Event::Done { tag, error })
    }
}

/// The errno of an NBD error number; `None` for success. The protocol's numbers are Linux's.
fn errno(number: u32) -> Option<i32> {
    match number {
        0 => None,
        1 => Some(libc::EPERM),
        5 => Some(libc::EIO),
        12 => Some(libc::ENOMEM),
        28 => Some(libc::ENOSPC),
        75 => Some(libc::EOVERFLOW),
        95 => Some(libc::EOPNOTSUPP),
        108 => Some(libc::ESHUTDOWN),
        // 22, and what does not exist.
        _ => Some(libc::EINVAL),
    }
}
