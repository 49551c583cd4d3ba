//! A session with a server: requests out, replies in, and how it ends.
//!
//! It is *up*, then perhaps *leaving* (the server is about to go: nothing new is sent, replies
//! still come), then perhaps *lingering*: nothing is read for its content any more, and we wait
//! for the server to close, which is its word that it does nothing more for this session.

use std::io::{self, ErrorKind};

use vmferry_protocol::storage::JobKind;

use super::connection::Wire;
use super::dial::Dialled;
use super::jobs::{Jobs, Piece};
use super::outgoing::{OUTGOING, Outgoing, Untouched};
use super::proto::{Command, Event, Export, Request, Transmission, Violation};

/// Most requests of a session in flight. More would only wait in the server, where they cannot
/// be taken back.
const MAX_IN_FLIGHT: usize = 128;
/// Zeros, for holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Leaving,
    Lingering,
}

/// How a session has ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing of it was in flight, or the server has closed it.
    Settled,
    /// The server may still do what was in flight.
    Unsettled(io::Error),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Session {
    wire: Wire,
    export: Export,
    transmission: Transmission<Piece>,
    out: Outgoing,
    state: State,
    /// The socket may have something, or take something.
    pub(super) readable: bool,
    writable: bool,
    /// What the socket has failed with first.
    failure: Option<io::Error>,
    /// Since the server's end it was sent something.
    prodded: bool,
    end: Option<End>,
    /// It has answered a request.
    pub(super) useful: bool,
}

impl Session {
    pub(super) fn new(dialled: Dialled) -> Self {
        Self {
            transmission: Transmission::new(dialled.export.structured),
            wire: dialled.wire,
            export: dialled.export,
            out: Outgoing::default(),
            state: State::Up,
            readable: true,
            writable: true,
            failure: None,
            prodded: false,
            end: None,
            useful: false,
        }
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up && self.end.is_none()
    }

    /// Requests in flight.
    pub(super) fn load(&self) -> usize {
        self.transmission.in_flight()
    }

    /// Whether it takes a request now.
    pub(super) fn has_room(&self) -> bool {
        self.is_up()
            && self.writable
            && self.failure.is_none()
            && self.out.payload.is_none()
            && self.out.bytes.len() < OUTGOING
            && self.load() < MAX_IN_FLIGHT
    }

    /// Largest payload that it takes, in bytes.
    pub(super) fn max_payload(&self) -> u32 {
        self.export.sizes.maximum
    }

    /// How it has ended, if it has, with what was in flight.
    pub(super) fn ended(&mut self) -> Option<(End, Vec<Piece>)> {
        if self.state != State::Up && self.load() == 0 {
            self.end.get_or_insert(End::Settled);
        }
        let end = self.end.take()?;
        let all = self.transmission.take(|_| true);
        Some((end, all.into_iter().map(|request| request.tag).collect()))
    }

    /// The socket has something to tell.
    pub(super) fn wake(&mut self, writable: bool) {
        self.readable = true;
        self.writable |= writable;
    }

    /// Adds a request to the outgoing bytes.
    pub(super) fn send(&mut self, piece: Piece) {
        let command = match piece.kind {
            JobKind::Read => Command::Read,
            JobKind::Write => Command::Write,
            JobKind::Flush => Command::Flush,
            JobKind::Discard => Command::Trim,
            JobKind::WriteZeroes { unmap } => Command::WriteZeroes { no_hole: !unmap },
        };
        let (index, bytes) = self.transmission.request(Request {
            command,
            offset: piece.extent.offset,
            len: piece.extent.len as u32,
            tag: piece,
        });
        let start = self.out.bytes.len();
        self.out.untouched.push_back(Untouched { index, start });
        self.out.bytes.extend_from_slice(&bytes);
        if command == Command::Write {
            self.out.payload = Some((piece, 0));
        }
    }

    /// Writes what there is, as far as the socket takes it. What it does not take of requests
    /// that were not begun goes back, and another session may have it.
    pub(super) fn flush(&mut self, jobs: &mut Jobs) {
        while self.failure.is_none() && self.writable {
            self.out.fill(jobs);
            if self.out.bytes.is_empty() {
                match self.wire.flush() {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    Err(e) => self.broken(e),
                    Ok(()) => {}
                }
                return;
            }
            match self.wire.write(&self.out.bytes[self.out.written..]) {
                Ok(0) => self.writable = false,
                Ok(len) => self.out.wrote(len),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.broken(e),
            }
        }
        self.withdraw(jobs);
    }

    /// Nothing can be written. There may be replies left to read: the end comes from there.
    fn broken(&mut self, error: io::Error) {
        self.failure = Some(error);
        self.readable = true;
    }

    /// Takes back what was not begun.
    fn withdraw(&mut self, jobs: &mut Jobs) {
        while let Some(untouched) = self.out.untouched.pop_back() {
            self.out.bytes.truncate(untouched.start);
            self.out.payload = None;
            if let Some(request) = self.transmission.withdraw(untouched.index) {
                jobs.unsend(request.tag);
            }
        }
    }

    /// Reads once, into `scratch`, and takes what has come.
    pub(super) fn receive(&mut self, jobs: &mut Jobs, scratch: &mut [u8]) {
        let lingering = self.state == State::Lingering;
        let read = match lingering {
            true => self.wire.read_raw(scratch),
            false => self.wire.read(scratch),
        };
        match read {
            Ok(0) => {
                self.readable = false;
                self.closed(jobs);
            }
            Ok(_) if lingering => {}
            Ok(len) => {
                if let Err(violation) = self.take(jobs, &scratch[..len]) {
                    tracing::error!(%violation, "session given up");
                    self.linger(jobs);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                tracing::error!(error = %e, "session given up: TLS has failed");
                self.linger(jobs);
            }
            Err(e) => {
                self.readable = false;
                self.fail(e);
            }
        }
    }

    fn take(&mut self, jobs: &mut Jobs, bytes: &[u8]) -> Result<(), Violation> {
        let mut rest = bytes;
        loop {
            let (used, event) = self.transmission.receive(rest)?;
            rest = &rest[used..];
            match event {
                None => return Ok(()),
                Some(Event::Data { tag, offset, bytes }) => jobs.copy_in(tag.job, offset, bytes),
                Some(Event::Hole { tag, offset, len }) => {
                    let (mut offset, mut left) = (offset, len as usize);
                    while left > 0 {
                        let some = left.min(ZEROS.len());
                        jobs.copy_in(tag.job, offset, &ZEROS[..some]);
                        (offset, left) = (offset + some as u64, left - some);
                    }
                }
                Some(Event::Done { tag, error }) if error == Some(libc::ESHUTDOWN) => {
                    jobs.lost(std::iter::once(tag));
                    if self.state == State::Up {
                        self.state = State::Leaving;
                        self.withdraw(jobs);
                    }
                }
                Some(Event::Done { tag, error }) => {
                    self.useful = true;
                    jobs.done(tag, error);
                }
            }
        }
    }

    /// The server sends nothing more. It may have closed one direction only, and go on: what we
    /// send now is refused by a server that is gone.
    fn closed(&mut self, jobs: &mut Jobs) {
        self.linger(jobs);
        if self.failure.is_none() && !std::mem::replace(&mut self.prodded, true) {
            self.goodbye();
            if self.wire.is_tls()
                && let Err(e) = self.wire.prod()
                && e.kind() != ErrorKind::WouldBlock
            {
                self.failure = Some(e);
            }
            self.flush(jobs);
        }
        if let Some(e) = self.failure.take() {
            self.fail(e);
        }
    }

    /// Waits for the server to close from now on. What only looks is asked for elsewhere.
    fn linger(&mut self, jobs: &mut Jobs) {
        if self.state == State::Lingering {
            return;
        }
        self.withdraw(jobs);
        self.state = State::Lingering;
        let looks = |request: &Request<Piece>| !request.tag.kind.changes_disk();
        let looks = self.transmission.take(looks);
        jobs.lost(looks.into_iter().map(|request| request.tag));
        self.goodbye();
    }

    /// Asks the server to finish and close; after the request that was begun, whole.
    fn goodbye(&mut self) {
        if self.wire.is_tls() {
            self.wire.say_goodbye();
        } else {
            self.out.goodbye = true;
        }
    }

    /// Ends a session in which nothing is in flight, as well as can be done without waiting.
    pub(super) fn part(&mut self, jobs: &mut Jobs) {
        self.out.goodbye = true;
        self.flush(jobs);
        if self.wire.is_tls() {
            self.wire.say_goodbye();
        }
    }

    fn fail(&mut self, error: io::Error) {
        let closed = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        self.end = Some(match closed.contains(&error.kind()) {
            true => End::Settled,
            false => End::Unsettled(error),
        });
    }

    /// The socket has failed, or both directions are closed. Whatever the server has sent before
    /// is read first.
    pub(super) fn hung_up(&mut self) {
        if let Ok(Some(e)) = self.wire.socket().take_error() {
            self.failure.get_or_insert(e);
        }
        self.prodded = false;
    }
}
