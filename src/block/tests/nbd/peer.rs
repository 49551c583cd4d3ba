//! A server that the test plays itself, reply by reply.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use vmferry_block::nbd::proto::flag;

use crate::common::LONG;
use crate::handshake::Script;
use crate::servers::Place;

/// Size and transmission flags.
type Export = Arc<Mutex<(u64, u16)>>;

/// Negotiates with whoever comes, and hands the sessions to the test.
pub(crate) struct Scripted {
    place: Place,
    export: Export,
    sessions: Receiver<Peer>,
}

/// The server's end of a session.
pub(crate) struct Peer {
    stream: UnixStream,
    /// Size of the export that it was told of.
    pub(crate) bytes: u64,
    /// First bytes of the next request.
    begun: bool,
}

/// A request. Commands are the protocol's: 0 read, 1 write, 2 disconnect, 3 flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) command: u16,
    pub(crate) cookie: [u8; 8],
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const ALL: u16 = flag::HAS_FLAGS | flag::FLUSH | flag::TRIM | flag::WRITE_ZEROES;

impl Scripted {
    pub(crate) fn new(bytes: u64, flags: u16) -> Self {
        let place = Place::new();
        let listener = UnixListener::bind(place.at("socket")).unwrap();
        let (send, sessions) = channel();
        let export = Arc::new(Mutex::new((bytes, flags)));
        let theirs = export.clone();
        thread::spawn(move || serve(&listener, &theirs, &send));
        Self {
            place,
            export,
            sessions,
        }
    }

    pub(crate) fn uri(&self) -> String {
        self.place.uri("")
    }

    /// From now on the export has this size.
    pub(crate) fn resize(&self, bytes: u64) {
        self.export.lock().unwrap().0 = bytes;
    }

    /// Waits for the next session.
    pub(crate) fn session(&self) -> Peer {
        let peer = self.sessions.recv_timeout(LONG).expect("nobody comes");
        peer.stream.set_read_timeout(Some(LONG)).unwrap();
        peer
    }

    /// From now on nobody can connect.
    pub(crate) fn vanish(&self) {
        std::fs::remove_file(self.place.at("socket")).unwrap();
    }

    pub(crate) fn nobody_came(&self) -> bool {
        self.sessions.try_recv().is_err()
    }
}

fn serve(listener: &UnixListener, export: &Export, sessions: &Sender<Peer>) {
    for stream in listener.incoming() {
        let Some(peer) = negotiate(stream.unwrap(), export) else {
            continue;
        };
        if sessions.send(peer).is_err() {
            return;
        }
    }
}

/// Without structured replies; the export is whatever was asked for.
fn negotiate(mut stream: UnixStream, export: &Export) -> Option<Peer> {
    stream.write_all(&Script::greeting(3).0).ok()?;
    stream.read_exact(&mut [0; 4]).ok()?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).ok()?;
        let number = |at: usize| u32::from_be_bytes(*header[at..].first_chunk().unwrap());
        let (option, len) = (number(8), number(12));
        stream.read_exact(&mut vec![0; len as usize]).ok()?;
        let answer = Script::default();
        if option != 7 {
            let no = answer.answer(option, 1 << 31 | 1, &[]);
            stream.write_all(&no.0).ok()?;
            continue;
        }
        let (bytes, flags) = *export.lock().unwrap();
        let yes = answer.export(bytes, flags).answer(7, 1, &[]);
        stream.write_all(&yes.0).ok()?;
        return Some(Peer {
            stream,
            bytes,
            begun: false,
        });
    }
}

impl Peer {
    /// Waits for the next request; none if the client has closed.
    pub(crate) fn next(&mut self) -> Option<Asked> {
        if !std::mem::take(&mut self.begun) {
            self.magic()?;
        }
        let mut bytes = [0; 28];
        self.stream.read_exact(&mut bytes[4..]).ok()?;
        let mut asked = Asked {
            command: u16::from_be_bytes(*bytes[6..].first_chunk().unwrap()),
            cookie: *bytes[8..].first_chunk().unwrap(),
            offset: u64::from_be_bytes(*bytes[16..].first_chunk().unwrap()),
            len: u32::from_be_bytes(*bytes[24..].first_chunk().unwrap()),
            payload: Vec::new(),
        };
        if asked.command == 1 {
            asked.payload = vec![0; asked.len as usize];
            self.stream.read_exact(&mut asked.payload).unwrap();
        }
        Some(asked)
    }

    /// Waits until a request has begun to come.
    pub(crate) fn begins(&mut self) {
        self.magic().expect("the client has closed");
        self.begun = true;
    }

    fn magic(&mut self) -> Option<()> {
        let mut magic = [0; 4];
        self.stream.read_exact(&mut magic).ok()?;
        assert_eq!(magic, [0x25, 0x60, 0x95, 0x13]);
        Some(())
    }

    /// Answers everything, reads with zeros, until the client closes.
    pub(crate) fn answer_all(mut self) {
        while let Some(asked) = self.next() {
            let len = if asked.command == 0 { asked.len } else { 0 };
            if asked.command != 2 {
                self.reply(&asked, 0, &vec![0; len as usize]);
            }
        }
    }

    pub(crate) fn asked(&mut self) -> Asked {
        self.next().expect("the client has closed")
    }

    /// The next request is the goodbye.
    pub(crate) fn parts(&mut self) {
        assert_eq!(self.asked().command, 2);
    }

    pub(crate) fn reply(&mut self, asked: &Asked, error: u32, data: &[u8]) {
        let magic = 0x6744_6698_u32.to_be_bytes();
        let bytes = [&magic[..], &error.to_be_bytes(), &asked.cookie, data].concat();
        self.raw(&bytes);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends nothing more, and reads on.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}
