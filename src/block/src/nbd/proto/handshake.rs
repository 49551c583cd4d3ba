//! The fixed newstyle negotiation, up to an export.

use std::fmt;

use super::replies::{self, Header, Reply, error};
use super::{BlockSizes, Export, Violation, be16, be64};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OLD_MAGIC: u64 = 0x0000_4202_8186_1253;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const INFO_BLOCK_SIZE: u16 = 3;

/// Most answers to one option that are read.
const MAX_REPLIES: u32 = 4096;
/// Most names of exports that are told of.
const MAX_NAMES: usize = 16;

/// What the client wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Name of the export, at most 4096 bytes.
    pub export: String,
    /// TLS, or nothing.
    pub tls: bool,
}

/// What the negotiation needs next. Everything in [`Handshake::output`] is to be sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Exactly so many bytes (at least 1, at most 4.5 KiB) for [`Handshake::receive`]. Not one
    /// more may be read: what follows may belong to TLS, or to the transmission.
    Read(usize),
    /// TLS begins now; then [`Handshake::tls_started`].
    StartTls,
    /// Over; a [`Transmission`](super::Transmission) follows.
    Ready(Export),
}

/// Why there is no export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no NBD server, or one that is not right.
    Violation(Violation),
    /// TLS was asked for, and it has none. With its words.
    NoTls(String),
    /// It wants TLS.
    TlsNeeded,
    /// It has no such export. With its words, and the exports that it tells of.
    Unknown(String, Vec<String>),
    /// Anything else that it says no to, with its number and words.
    Refused(u32, String),
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |words: &str| match words {
            "" => String::new(),
            words => format!(" (it says: {words})"),
        };
        match self {
            Self::Violation(violation) => violation.fmt(f),
            Self::NoTls(words) => write!(
                f,
                "the server has no TLS{}: give it certificates, or write nbd instead of nbds",
                quoted(words)
            ),
            Self::TlsNeeded => f.write_str(
                "the server wants TLS: write nbds instead of nbd, with tls-certificates=DIR",
            ),
            Self::Unknown(words, names) => {
                write!(f, "the server has no export of that name{}", quoted(words))?;
                match names.as_slice() {
                    [] => f.write_str("; see its configuration for the names that it has"),
                    names => write!(f, "; it has: '{}'", names.join("', '")),
                }
            }
            Self::Refused(number, words) => write!(
                f,
                "the server refuses the export, with error {}{}",
                number & 0x7fff_ffff,
                quoted(words)
            ),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Greeting,
    Header(u32),
    Body(u32, Header),
    /// Size and flags, the answer to [`EXPORT_NAME`], so many bytes long.
    OldAnswer(usize),
    Tls,
    Ready(Export),
    /// It has come to nothing.
    Over,
}

/// The negotiation. Pure: see the module's documentation.
#[derive(Debug)]
pub struct Handshake {
    wish: Wish,
    state: State,
    output: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    replies: u32,
    export: Option<(u64, u16)>,
    sizes: Option<BlockSizes>,
    /// Words of the refusal, and names listed.
    unknown: (String, Vec<String>),
}

impl Handshake {
    /// Begins; the server speaks first.
    #[must_use]
    pub fn new(wish: Wish) -> Self {
        Self {
            wish,
            state: State::Greeting,
            output: Vec::new(),
            no_zeroes: false,
            structured: false,
            replies: 0,
            export: None,
            sizes: None,
            unknown: Default::default(),
        }
    }

    /// Takes the bytes to send.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// What is needed next.
    ///
    /// # Errors
    /// After [`Self::receive`] has failed.
    pub fn step(&self) -> Result<Step, Refusal> {
        Ok(match self.state {
            State::Greeting => Step::Read(18),
            State::Header(_) => Step::Read(replies::HEADER),
            State::Body(_, header) => Step::Read(header.len),
            State::OldAnswer(len) => Step::Read(len),
            State::Tls => Step::StartTls,
            State::Ready(export) => Step::Ready(export),
            State::Over => return Err(Violation("the negotiation is over").into()),
        })
    }

    /// What the server is expected to say, for messages.
    #[must_use]
    pub fn waits_for(&self) -> &'static str {
        match self.state {
            State::Greeting => "its greeting",
            State::Header(STARTTLS) | State::Body(STARTTLS, _) | State::Tls => "TLS",
            State::OldAnswer(_) => "the export's size (it closes if it has no such export)",
            _ => "its answers in the negotiation",
        }
    }

    /// TLS is there; everything goes through it from now on.
    pub fn tls_started(&mut self) {
        if matches!(self.state, State::Tls) {
            self.ask(STRUCTURED_REPLY, &[]);
        }
    }

    /// Takes exactly the bytes that [`Self::step`] asked for.
    ///
    /// # Errors
    /// [`Refusal`]: there will be no export. [`Self::output`] may hold a goodbye.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let done = match self.state {
            State::Greeting => self.greeting(bytes),
            State::Header(option) => self.header(option, bytes),
            State::Body(option, header) => self.reply(option, header, bytes),
            State::OldAnswer(_) => self.old_answer(bytes),
            _ => Err(Violation("it speaks out of turn").into()),
        };
        if done.is_err() {
            self.state = State::Over;
        }
        done
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if be64(bytes, 0) != Some(NBD_MAGIC) {
            return Err(
                Violation("it does not greet as an NBD server; check host and port").into(),
            );
        }
        match be64(bytes, 8) {
            Some(OPTION_MAGIC) => {}
            Some(OLD_MAGIC) => {
                return Err(Violation("it negotiates in the old style, gone since 2012").into());
            }
            _ => return Err(Violation("its greeting is of no known style").into()),
        }
        let flags = be16(bytes, 16).unwrap_or(0);
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(Violation("it does not negotiate in the fixed new style").into());
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        let ours = flags & (FIXED_NEWSTYLE | NO_ZEROES);
        self.output.extend(u32::from(ours).to_be_bytes());
        match self.wish.tls {
            true => self.ask(STARTTLS, &[]),
            false => self.ask(STRUCTURED_REPLY, &[]),
        }
        Ok(())
    }

    fn ask(&mut self, option: u32, data: &[u8]) {
        self.output.extend(OPTION_MAGIC.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend((data.len() as u32).to_be_bytes());
        self.output.extend(data);
        self.replies = 0;
        self.state = State::Header(option);
    }

    fn ask_for_export(&mut self) {
        let name = std::mem::take(&mut self.wish.export).into_bytes();
        let mut data = Vec::with_capacity(name.len() + 8);
        data.extend((name.len() as u32).to_be_bytes());
        data.extend(&name);
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.ask(GO, &data);
        self.wish.export = String::from_utf8(name).unwrap_or_default();
    }

    fn header(&mut self, option: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let header = Header::parse(bytes, option)?;
        self.replies += 1;
        if self.replies > MAX_REPLIES {
            return Err(Violation("it answers without end").into());
        }
        self.state = State::Body(option, header);
        match header.len {
            0 => self.reply(option, header, &[]),
            _ => Ok(()),
        }
    }

    fn reply(&mut self, option: u32, header: Header, body: &[u8]) -> Result<(), Refusal> {
        let reply = header.body(body)?;
        self.state = State::Header(option);
        if option != LIST && matches!(reply, Reply::Error(error::TLS_REQUIRED, _)) {
            return self.give_up(Refusal::TlsNeeded);
        }
        match (option, reply) {
            (STARTTLS, Reply::Ack) => self.state = State::Tls,
            (STARTTLS, Reply::Error(_, words)) => return self.give_up(Refusal::NoTls(words)),
            (STRUCTURED_REPLY, reply @ (Reply::Ack | Reply::Error(..))) => {
                self.structured = matches!(reply, Reply::Ack);
                self.ask_for_export();
            }
            (GO, Reply::Export(bytes, flags)) => self.export = Some((bytes, flags)),
            (GO, Reply::Sizes(sizes)) => self.sizes = Some(sizes),
            (GO, Reply::Other) => {}
            (GO, Reply::Ack) => {
                let none = Violation("it grants an export and does not describe it");
                let (bytes, flags) = self.export.ok_or(none)?;
                self.ready(bytes, flags)?;
            }
            (GO, Reply::Error(error::UNSUPPORTED, _)) => {
                let name = self.wish.export.clone().into_bytes();
                self.ask(EXPORT_NAME, &name);
                let zeroes = if self.no_zeroes { 0 } else { 124 };
                self.state = State::OldAnswer(10 + zeroes);
            }
            (GO, Reply::Error(error::UNKNOWN, words)) => {
                self.unknown.0 = words;
                self.ask(LIST, &[]);
            }
            (GO, Reply::Error(number, words)) => {
                return self.give_up(Refusal::Refused(number, words));
            }
            (LIST, Reply::Server(name)) => {
                if self.unknown.1.len() < MAX_NAMES {
                    self.unknown.1.push(name);
                }
            }
            (LIST, Reply::Ack | Reply::Error(..)) => {
                let (words, names) = std::mem::take(&mut self.unknown);
                return self.give_up(Refusal::Unknown(words, names));
            }
            _ => return Err(Violation("it answers what was not asked").into()),
        }
        Ok(())
    }

    fn old_answer(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let short = Violation("its answer is short");
        let (size, flags) = (be64(bytes, 0).ok_or(short)?, be16(bytes, 8).ok_or(short)?);
        self.ready(size, flags)
    }

    fn ready(&mut self, bytes: u64, flags: u16) -> Result<(), Refusal> {
        if i64::try_from(bytes).is_err() {
            return Err(Violation("the export is too large to be").into());
        }
        self.state = State::Ready(Export {
            bytes,
            flags,
            sizes: self.sizes.unwrap_or(BlockSizes::UNSAID),
            structured: self.structured,
        });
        Ok(())
    }

    /// Says goodbye.
    fn give_up(&mut self, why: Refusal) -> Result<(), Refusal> {
        self.ask(ABORT, &[]);
        Err(why)
    }
}
