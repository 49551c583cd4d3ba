//! A connector whose connections do as a script says: cut, hold, change, one message or one
//! frame at a time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use vmferry_protocol::message::Message;
use vmferry_transports::{Bandwidth, Connection, Connector, PageWriter, TransportError};

use super::relay;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the source.
    Out,
    /// To the source.
    Back,
}

/// A control message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Which connection, from 1.
    pub connection: usize,
    /// Which way.
    pub way: Way,
    /// The kind of message.
    pub name: &'static str,
    /// Which of those that went this way over all connections, from 1. Pings and pongs, which
    /// depend on time, are numbered 0 and not counted.
    pub number: usize,
    /// Which of its kind, from 1.
    pub of_kind: usize,
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Step {
    /// It goes on.
    Pass,
    /// It is lost, and the connection with it.
    Cut,
    /// It is lost, and all that follows on this connection in this direction; nobody is told.
    Hold,
    /// These bytes go on in its place.
    Bytes(Vec<u8>),
    /// It goes on so many times.
    Times(usize),
}

/// What a page stream sends at a time: its preamble, or a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Which connection, from 1.
    pub connection: usize,
    /// Which stream of it, from 0.
    pub stream: usize,
    /// Which chunk, over all streams and connections, from 1; 0 is a preamble.
    pub number: usize,
    /// Head and content.
    pub parts: &'a [Bytes],
}

/// What becomes of a frame.
#[derive(Debug)]
pub enum PageStep {
    /// It goes on.
    Pass,
    /// It is lost, and the connection with it.
    Cut,
    /// It is lost, and its stream; only the source is told at once.
    CutStream,
    /// So many bytes of it go on, then the stream ends; the source is not told.
    Truncate(usize),
    /// It is lost, and all that follows on its stream; nobody is told.
    Hold,
    /// These bytes go on in its place.
    Bytes(Vec<u8>),
}

type Rule = Box<dyn Fn(&Said, &Message) -> Step + Send + Sync>;
type PageRule = Box<dyn Fn(&Frame<'_>) -> PageStep + Send + Sync>;

#[derive(Debug, Default)]
struct Record {
    connections: usize,
    said: Vec<Said>,
    frames: usize,
}

/// What is to happen, and a record of what was said.
pub struct Script {
    rule: Rule,
    page_rule: PageRule,
    record: Mutex<Record>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({:?})", self.record)
    }
}

impl Script {
    /// Everything passes.
    #[must_use]
    pub fn clean() -> Arc<Self> {
        Self::new(|_, _| Step::Pass)
    }

    /// Messages do as `rule` says.
    pub fn new(rule: impl Fn(&Said, &Message) -> Step + Send + Sync + 'static) -> Arc<Self> {
        Self::full(rule, |_| PageStep::Pass)
    }

    /// Frames do as `rule` says.
    pub fn pages(rule: impl Fn(&Frame<'_>) -> PageStep + Send + Sync + 'static) -> Arc<Self> {
        Self::full(|_, _| Step::Pass, rule)
    }

    /// Both.
    pub fn full(
        rule: impl Fn(&Said, &Message) -> Step + Send + Sync + 'static,
        page_rule: impl Fn(&Frame<'_>) -> PageStep + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            rule: Box::new(rule),
            page_rule: Box::new(page_rule),
            record: Mutex::default(),
        })
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every message so far, those that were lost too.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        self.record().said.clone()
    }

    /// How many messages went this way, pings and pongs left out.
    #[must_use]
    pub fn count(&self, way: Way) -> usize {
        let record = self.record();
        record
            .said
            .iter()
            .filter(|s| s.way == way && s.number > 0)
            .count()
    }

    /// Whether such a message went this way.
    #[must_use]
    pub fn has(&self, way: Way, name: &str) -> bool {
        self.record()
            .said
            .iter()
            .any(|s| s.way == way && s.name == name)
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.record().connections
    }

    /// Chunks so far.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.record().frames
    }

    pub(super) fn message(&self, connection: usize, way: Way, message: &Message) -> Step {
        let said = {
            let mut record = self.record();
            let name = message.name();
            let of = |f: &dyn Fn(&Said) -> bool| record.said.iter().filter(|s| f(s)).count();
            let timed = matches!(message, Message::Ping { .. } | Message::Pong { .. });
            let said = Said {
                connection,
                way,
                name,
                number: if timed {
                    0
                } else {
                    1 + of(&|s| s.way == way && s.number > 0)
                },
                of_kind: 1 + of(&|s| s.way == way && s.name == name),
            };
            record.said.push(said);
            said
        };
        (self.rule)(&said, message)
    }

    fn page(&self, connection: usize, stream: usize, first: bool, parts: &[Bytes]) -> PageStep {
        let number = if first {
            0
        } else {
            let mut record = self.record();
            record.frames += 1;
            record.frames
        };
        (self.page_rule)(&Frame {
            connection,
            stream,
            number,
            parts,
        })
    }
}

/// A connector whose connections follow a script.
#[derive(Debug)]
pub struct FaultyConnector {
    inner: Arc<dyn Connector>,
    script: Arc<Script>,
}

impl FaultyConnector {
    /// Over `inner`.
    #[must_use]
    pub fn over(inner: Arc<dyn Connector>, script: Arc<Script>) -> Arc<dyn Connector> {
        Arc::new(Self { inner, script })
    }
}

impl Connector for FaultyConnector {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn set_limit(&self, limit: Option<Bandwidth>) {
        self.inner.set_limit(limit);
    }

    fn connect(&self, page_streams: u16) -> BoxFuture<'_, Result<Connection, TransportError>> {
        Box::pin(async move {
            let Connection { control, pages } = self.inner.connect(page_streams).await?;
            let number = {
                let mut record = self.script.record();
                record.connections += 1;
                record.connections
            };
            let cut = Arc::new(watch::Sender::new(false));
            let control = relay::control(control, self.script.clone(), number, cut.clone());
            let faulty = |(stream, inner): (usize, Box<dyn PageWriter>)| {
                Box::new(FaultyPages {
                    inner: Some(inner),
                    script: self.script.clone(),
                    connection: number,
                    stream,
                    begun: false,
                    held: false,
                    cut: cut.clone(),
                }) as Box<dyn PageWriter>
            };
            let pages = pages.into_iter().enumerate().map(faulty).collect();
            Ok(Connection { control, pages })
        })
    }
}

#[derive(Debug)]
struct FaultyPages {
    inner: Option<Box<dyn PageWriter>>,
    script: Arc<Script>,
    connection: usize,
    stream: usize,
    begun: bool,
    held: bool,
    /// Set when the connection is cut.
    cut: Arc<watch::Sender<bool>>,
}

fn lost() -> TransportError {
    TransportError::Lost("cut on demand".to_owned())
}

impl FaultyPages {
    async fn pass(&mut self, parts: &[Bytes]) -> Result<(), TransportError> {
        let Some(inner) = &mut self.inner else {
            return Err(lost());
        };
        let mut cut = self.cut.subscribe();
        let sent = tokio::select! {
            biased;
            _ = cut.wait_for(|cut| *cut) => Err(lost()),
            sent = inner.send(parts) => sent,
        };
        if sent.is_err() {
            self.inner = None;
        }
        sent
    }
}

impl PageWriter for FaultyPages {
    fn send<'a>(&'a mut self, parts: &'a [Bytes]) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let first = !std::mem::replace(&mut self.begun, true);
            if self.held {
                return Ok(());
            }
            match self.script.page(self.connection, self.stream, first, parts) {
                PageStep::Pass => self.pass(parts).await,
                PageStep::Cut => {
                    self.cut.send_replace(true);
                    self.inner = None;
                    Err(lost())
                }
                PageStep::CutStream => {
                    self.inner = None;
                    Err(lost())
                }
                PageStep::Truncate(bytes) => {
                    let mut whole = parts.concat();
                    whole.truncate(bytes);
                    let sent = self.pass(&[Bytes::from(whole)]).await;
                    self.inner = None;
                    self.held = true;
                    sent
                }
                PageStep::Hold => {
                    self.held = true;
                    Ok(())
                }
                PageStep::Bytes(bytes) => self.pass(&[Bytes::from(bytes)]).await,
            }
        })
    }
}
