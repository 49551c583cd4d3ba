//! `Reception`: the destination's side of the connections. Lets in who shows the token, and
//! nobody else; takes pages from the streams that belong to the migration.
//!
//! Whoever connects must first say `Hello` or `Rejoin` with the token: until then a connection
//! takes nothing from the one that stands, so a stranger with a good certificate can do no harm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, Recipient};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::{ChunkId, MigrationId, Token};
use vmferry_protocol::message::{self, AbortCode};
use vmferry_protocol::wire::{FrameDecoder, encode};
use vmferry_transports::{Control, Incoming, Listener, MAX_STREAMS, TransportError};

use super::transport::{Say, TransportEvent};
use crate::line::{self, A_MOMENT, Ear, FromLine, Line};
use crate::pages::{self, Admission, Broken};

/// How long a connection may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Connections that may be introducing themselves at a time.
const STRANGERS: usize = 16;
/// Page streams that may have yet to show the token.
const STRANGE_STREAMS: usize = MAX_STREAMS as usize;

/// What the owner is told of the page streams.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum PageEvent {
    /// This chunk is in RAM.
    Applied(ChunkId),
    /// A page stream was cut.
    Cut(String),
    /// A page stream brought something that is wrong.
    Wrong(String),
}

/// The reception's actor.
#[derive(Debug)]
pub(crate) struct Reception {
    token: Token,
    owner: Recipient<TransportEvent>,
    page_owner: Recipient<PageEvent>,
    listening: Option<JoinHandle<()>>,
    listener: Option<Box<dyn Listener>>,
    /// The migration that said `Hello`: there is no second one.
    migration: Option<MigrationId>,
    introducing: JoinSet<()>,
    /// Those that have said nothing yet, the oldest first.
    strangers: VecDeque<AbortHandle>,
    streams: JoinSet<()>,
    strange_streams: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
    /// Places for the migration's page streams.
    places: Arc<Semaphore>,
    /// Connections that say their last words.
    closing: JoinSet<()>,
    admission: watch::Sender<Option<Admission>>,
    line: Option<Line>,
    epoch: u64,
}

impl Reception {
    pub(crate) fn new(
        listener: Box<dyn Listener>,
        token: Token,
        owner: Recipient<TransportEvent>,
        page_owner: Recipient<PageEvent>,
    ) -> Self {
        Self {
            token,
            owner,
            page_owner,
            listening: None,
            listener: Some(listener),
            migration: None,
            introducing: JoinSet::new(),
            strangers: VecDeque::new(),
            streams: JoinSet::new(),
            strange_streams: VecDeque::new(),
            places: Arc::new(Semaphore::new(MAX_STREAMS.into())),
            closing: JoinSet::new(),
            admission: watch::Sender::new(None),
            line: None,
            epoch: 0,
        }
    }

    fn page_stream(&mut self, stream: Box<dyn vmferry_transports::PageReader>) {
        while self.streams.try_join_next().is_some() {}
        self.strange_streams
            .retain(|(task, known)| !task.is_finished() && !known.load(Ordering::Acquire));
        // Whoever means it speaks at once: the one that has been silent for longest goes.
        if self.strange_streams.len() >= STRANGE_STREAMS
            && let Some((task, _)) = self.strange_streams.pop_front()
        {
            tracing::warn!("too many page streams that say nothing; one is refused");
            task.abort();
        }
        let (token, admission) = (self.token, self.admission.subscribe());
        let (owner, places) = (self.page_owner.clone(), self.places.clone());
        let known = Arc::new(AtomicBool::new(false));
        let is_known = known.clone();
        let task = self.streams.spawn(async move {
            let mut place = None;
            let admit = || {
                is_known.store(true, Ordering::Release);
                place = places.try_acquire_owned().ok();
                place.is_some()
            };
            let of_applied = owner.clone();
            let applied = move |chunk| {
                let told = of_applied.send(PageEvent::Applied(chunk));
                async move {
                    // Nobody listens any more: the stream is ended soon.
                    let _ = told.await;
                }
            };
            match pages::receive(stream, token, admission, admit, applied).await {
                Ok(()) => {}
                Err(Broken::Stranger(why)) => tracing::warn!(why, "page stream refused"),
                Err(Broken::Cut(detail)) => {
                    // The source may have said why.
                    tokio::time::sleep(A_MOMENT).await;
                    owner.do_send(PageEvent::Cut(detail));
                }
                Err(Broken::Wrong(detail)) => owner.do_send(PageEvent::Wrong(detail)),
            }
            drop(place);
        });
        self.strange_streams.push_back((task, known));
    }

    fn control_stream(&mut self, control: Control, addr: Addr<Self>) {
        while self.introducing.try_join_next().is_some() {}
        self.strangers.retain(|task| !task.is_finished());
        // As with page streams.
        if self.strangers.len() >= STRANGERS
            && let Some(task) = self.strangers.pop_front()
        {
            tracing::warn!("too many connections that say nothing; one is refused");
            task.abort();
        }
        let token = self.token;
        let task = self.introducing.spawn(async move {
            let asked = tokio::time::timeout(INTRODUCTION, introduce(control, &token));
            match asked.await {
                Ok(Ok(introduced)) => addr.do_send(introduced),
                Ok(Err(why)) => tracing::warn!(why, "a connection was refused"),
                Err(_) => tracing::warn!("a connection said nothing; refused"),
            }
        });
        self.strangers.push_back(task);
    }

    /// Whether a connection that shows the token belongs to the migration, by what it says first.
    fn belongs(&mut self, first: &message::Message) -> bool {
        match (first, self.migration) {
            (message::Message::Hello(hello), None) => {
                self.migration = Some(hello.migration);
                true
            }
            (message::Message::Rejoin { migration, .. }, Some(this)) => *migration == this,
            _ => false,
        }
    }
}

/// Reads the first message; whoever does not show the token is told so.
async fn introduce(mut control: Control, token: &Token) -> Result<Introduced, String> {
    let mut decoder = FrameDecoder::default();
    let mut buffer = vec![0; 4096];
    let first = line::next(&mut control.reader, &mut decoder, &mut buffer).await?;
    let shown = match &first {
        message::Message::Hello(hello) => Some(hello.token),
        message::Message::Rejoin { token, .. } => Some(*token),
        _ => None,
    };
    if shown.is_some_and(|t| t.matches(token)) {
        return Ok(Introduced {
            control,
            decoder,
            first,
        });
    }
    let detail = "it does not show the token of the migration that is expected here";
    refuse(control, detail).await;
    Err(format!(
        "its first message, {}, shows no right token",
        first.name()
    ))
}

async fn refuse(mut control: Control, detail: &str) {
    let refusal = message::Message::Abort {
        code: AbortCode::Token,
        phase: "Introduction".to_owned(),
        detail: detail.to_owned(),
    };
    if let Ok(frame) = encode(&refusal) {
        let _ = control.writer.write_all(&frame).await;
    }
    control.writer.finish().await;
}

impl Actor for Reception {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let Some(mut listener) = self.listener.take() else {
            return;
        };
        let addr = ctx.address();
        self.listening = Some(tokio::spawn(async move {
            loop {
                let came = listener.accept().await;
                let ended = came.is_err();
                if addr.send(Came(came)).await.is_err() || ended {
                    return;
                }
            }
        }));
    }
}

/// A stream was opened, or no more will be.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Came(Result<Incoming, TransportError>);

impl Handler<Came> for Reception {
    type Result = ();

    fn handle(&mut self, Came(came): Came, ctx: &mut Context<Self>) {
        match came {
            Ok(Incoming::Control(control)) => self.control_stream(control, ctx.address()),
            Ok(Incoming::Page(stream)) => self.page_stream(stream),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "not listening any more");
                if self.migration.is_none() {
                    let detail = format!("nobody can come any more: {error}");
                    self.owner.do_send(TransportEvent::Lost(detail));
                }
            }
        }
    }
}

/// A connection that has shown the token.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Introduced {
    control: Control,
    decoder: FrameDecoder,
    first: message::Message,
}

impl Handler<Introduced> for Reception {
    type Result = ();

    fn handle(&mut self, came: Introduced, ctx: &mut Context<Self>) {
        if !self.belongs(&came.first) {
            tracing::warn!(
                said = came.first.name(),
                "a connection of another migration refused"
            );
            let detail = "another migration is expected, or under way, here";
            self.introducing.spawn(async move {
                let _ = tokio::time::timeout(INTRODUCTION, refuse(came.control, detail)).await;
            });
            return;
        }
        self.epoch += 1;
        let ear = ReceptionEar {
            epoch: self.epoch,
            addr: ctx.address(),
        };
        self.line = Some(Line::start(came.control, came.decoder, ear));
        self.owner.do_send(TransportEvent::Connected);
        self.owner.do_send(TransportEvent::Heard(came.first));
    }
}

#[derive(Clone, Debug)]
struct ReceptionEar {
    epoch: u64,
    addr: Addr<Reception>,
}

impl Ear for ReceptionEar {
    async fn tell(&self, what: FromLine) {
        let epoch = self.epoch;
        let _ = self.addr.send(OfLine { epoch, what }).await;
    }
}

/// Something of the line of that epoch.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct OfLine {
    epoch: u64,
    what: FromLine,
}

impl Handler<OfLine> for Reception {
    type Result = ();

    fn handle(&mut self, OfLine { epoch, what }: OfLine, _: &mut Context<Self>) {
        if epoch != self.epoch || self.line.is_none() {
            return;
        }
        self.owner.do_send(match what {
            FromLine::Heard(message) => TransportEvent::Heard(message),
            FromLine::Lost(detail) => {
                self.line = None;
                TransportEvent::Lost(detail)
            }
        });
    }
}

impl Handler<Say> for Reception {
    type Result = ();

    fn handle(&mut self, Say(message): Say, _: &mut Context<Self>) {
        if let Some(line) = &self.line {
            line.say(&message);
        }
    }
}

/// There is a machine: page streams of this migration may bring their pages.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Admit(pub(crate) Admission);

impl Handler<Admit> for Reception {
    type Result = ();

    fn handle(&mut self, Admit(admission): Admit, _: &mut Context<Self>) {
        self.admission.send_replace(Some(admission));
    }
}

/// Close the connection that stands, its last words said; the next may come.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct HangUp;

impl Handler<HangUp> for Reception {
    type Result = ();

    fn handle(&mut self, _: HangUp, _: &mut Context<Self>) {
        if let Some(line) = self.line.take() {
            while self.closing.try_join_next().is_some() {}
            self.closing.spawn(line.close());
        }
    }
}

/// End; answered when all is closed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct CloseAll;

impl Handler<CloseAll> for Reception {
    type Result = actix::ResponseFuture<()>;

    fn handle(&mut self, _: CloseAll, ctx: &mut Context<Self>) -> Self::Result {
        self.epoch += 1;
        let line = self.line.take();
        let listening = self.listening.take();
        let mut introducing = std::mem::take(&mut self.introducing);
        let mut streams = std::mem::take(&mut self.streams);
        let mut closing = std::mem::take(&mut self.closing);
        self.admission.send_replace(None);
        ctx.stop();
        Box::pin(async move {
            if let Some(task) = listening {
                task.abort();
                let _ = task.await;
            }
            introducing.shutdown().await;
            if let Some(line) = line {
                line.close().await;
            }
            while closing.join_next().await.is_some() {}
            streams.shutdown().await;
        })
    }
}
