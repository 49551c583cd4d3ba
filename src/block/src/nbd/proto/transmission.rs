//! Requests and replies of one session.

use super::coverage::Coverage;
use super::incoming::State;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const FLAG_NO_HOLE: u16 = 1 << 1;

/// Bytes of a request without its payload.
pub(crate) const REQUEST: usize = 28;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Data from the export.
    Read,
    /// Data to the export, which follows the request.
    Write,
    /// Everything acknowledged is to be stable.
    Flush,
    /// The range is of no interest.
    Trim,
    /// The range is to be zero.
    WriteZeroes {
        /// It has to stay allocated.
        no_hole: bool,
    },
}

/// A request, with what the caller wants back with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<T> {
    /// What.
    pub command: Command,
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
    /// The caller's own.
    pub tag: T,
}

/// What a reply says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a, T> {
    /// These bytes of a read. Within its range, each byte once.
    Data {
        /// The request's.
        tag: T,
        /// Where they are in the export.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// These bytes of a read are zero.
    Hole {
        /// The request's.
        tag: T,
        /// Where they are in the export.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// The request is over. A read without an error has had all its bytes.
    Done {
        /// The request's.
        tag: T,
        /// A number of errno.
        error: Option<i32>,
    },
}

/// A place for a request. Its name on the wire is its index and how often it was used: a name
/// comes again after 2³² requests in the same place at the earliest.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) uses: u32,
    pub(super) request: Option<Request<T>>,
    pub(super) covered: Coverage,
    pub(super) error: Option<i32>,
}

/// Both directions of one session. Pure: see the module's documentation.
#[derive(Debug)]
pub struct Transmission<T> {
    pub(super) structured: bool,
    pub(super) slots: Vec<Slot<T>>,
    free: Vec<usize>,
    pub(super) state: State,
    /// Header or fixed part, as far as it has come; a few KiB at most.
    pub(super) partial: Vec<u8>,
    in_flight: usize,
}

impl<T: Copy> Transmission<T> {
    /// A session without requests. `structured`: the server has agreed to structured replies.
    #[must_use]
    pub fn new(structured: bool) -> Self {
        Self {
            structured,
            slots: Vec::new(),
            free: Vec::new(),
            state: State::Header,
            partial: Vec::new(),
            in_flight: 0,
        }
    }

    /// Requests without a reply.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The bytes that ask for this (the payload of a write follows them), and the request's
    /// index for [`Self::withdraw`].
    pub fn request(&mut self, request: Request<T>) -> (usize, [u8; REQUEST]) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                uses: 0,
                request: None,
                covered: Coverage::default(),
                error: None,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.uses = slot.uses.wrapping_add(1);
        slot.request = Some(request);
        slot.covered.clear();
        slot.error = None;
        self.in_flight += 1;
        let (flags, command) = match request.command {
            Command::Read => (0, 0),
            Command::Write => (0, 1),
            Command::Flush => (0, 3),
            Command::Trim => (0, 4),
            Command::WriteZeroes { no_hole: false } => (0, 6),
            Command::WriteZeroes { no_hole: true } => (FLAG_NO_HOLE, 6),
        };
        let cookie = u64::from(slot.uses) << 32 | index as u64;
        let bytes = encode(flags, command, cookie, request.offset, request.len);
        (index, bytes)
    }

    /// The bytes that end the session.
    #[must_use]
    pub fn disconnect() -> [u8; REQUEST] {
        encode(0, 2, 0, 0, 0)
    }

    /// Forgets a request of which no byte was sent.
    pub fn withdraw(&mut self, index: usize) -> Option<Request<T>> {
        let request = self.slots.get_mut(index)?.request.take()?;
        self.free.push(index);
        self.in_flight -= 1;
        Some(request)
    }

    /// Takes the requests without a reply for which `which` says so.
    pub fn take(&mut self, which: impl Fn(&Request<T>) -> bool) -> Vec<Request<T>> {
        let all = 0..self.slots.len();
        let taken = all.filter(|i| self.slots[*i].request.as_ref().is_some_and(&which));
        let taken: Vec<usize> = taken.collect();
        let taken = taken.into_iter();
        taken.filter_map(|index| self.withdraw(index)).collect()
    }
}

fn encode(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}
