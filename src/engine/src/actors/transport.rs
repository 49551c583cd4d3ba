//! `Transport`: the source's connection to the destination. Makes it, speaks on it, loses it.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, Recipient};
use tokio::task::{JoinHandle, JoinSet};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message;
use vmferry_protocol::wire::FrameDecoder;
use vmferry_transports::{Connection, Connector, TransportError};

use crate::compression::Link;
use crate::encode::Frame;
use crate::line::{A_MOMENT, Ear, FromLine, Line};
use crate::pages;

/// What the owner is told.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum TransportEvent {
    /// A connection stands.
    Connected,
    /// The peer has said something.
    Heard(message::Message),
    /// There is no connection, or none could be made.
    Lost(String),
    /// A page stream broke; the control stream stands, as far as is known.
    PagesBroken(String),
}

/// The connection's actor. Events of connections before the present one are not passed on.
#[derive(Debug)]
pub(crate) struct Transport {
    connector: Arc<dyn Connector>,
    migration: MigrationId,
    token: Token,
    /// Boxed, as an actor must be `Unpin`.
    frames: Box<async_channel::Receiver<Frame>>,
    link: Arc<Link>,
    owner: Recipient<TransportEvent>,
    line: Option<Line>,
    pages: JoinSet<()>,
    connecting: Option<JoinHandle<()>>,
    /// Number of the present connection or attempt.
    epoch: u64,
}

impl Transport {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        migration: MigrationId,
        token: Token,
        frames: async_channel::Receiver<Frame>,
        link: Arc<Link>,
        owner: Recipient<TransportEvent>,
    ) -> Self {
        Self {
            connector,
            migration,
            token,
            frames: Box::new(frames),
            link,
            owner,
            line: None,
            pages: JoinSet::new(),
            connecting: None,
            epoch: 0,
        }
    }

    fn use_connection(&mut self, connection: Connection, addr: Addr<Self>) {
        let epoch = self.epoch;
        let preambles = pages::preambles(self.migration, &self.token, connection.pages.len());
        for (stream, preamble) in connection.pages.into_iter().zip(preambles) {
            let (frames, addr) = ((*self.frames).clone(), addr.clone());
            let link = self.link.clone();
            self.pages.spawn(async move {
                if let Err(detail) = pages::send(stream, preamble, frames, &link).await {
                    tokio::time::sleep(A_MOMENT).await;
                    addr.do_send(Broken { epoch, detail });
                }
            });
        }
        let ear = EpochEar { epoch, addr };
        self.line = Some(Line::start(
            connection.control,
            FrameDecoder::default(),
            ear,
        ));
    }
}

impl Actor for Transport {
    type Context = Context<Self>;
}

/// Connect, after a while; what stands is cut.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Connect {
    pub(crate) after: Duration,
    pub(crate) page_streams: u16,
}

impl Handler<Connect> for Transport {
    type Result = ();

    fn handle(&mut self, ask: Connect, ctx: &mut Context<Self>) {
        self.epoch += 1;
        self.pages.abort_all();
        // It is of no use any more, and has nothing to say that could be waited for.
        self.line = None;
        let (connector, epoch, addr) = (self.connector.clone(), self.epoch, ctx.address());
        let connecting = tokio::spawn(async move {
            tokio::time::sleep(ask.after).await;
            let made = connector.connect(ask.page_streams).await;
            addr.do_send(Made { epoch, made });
        });
        if let Some(before) = self.connecting.replace(connecting) {
            before.abort();
        }
    }
}

/// A connection was made, or not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Made {
    epoch: u64,
    made: Result<Connection, TransportError>,
}

impl Handler<Made> for Transport {
    type Result = ();

    fn handle(&mut self, Made { epoch, made }: Made, ctx: &mut Context<Self>) {
        if epoch != self.epoch {
            return;
        }
        let event = match made {
            Ok(connection) => {
                self.use_connection(connection, ctx.address());
                TransportEvent::Connected
            }
            Err(error) => TransportEvent::Lost(chain(&error)),
        };
        self.owner.do_send(event);
    }
}

/// A page stream of that epoch's connection broke.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Broken {
    epoch: u64,
    detail: String,
}

impl Handler<Broken> for Transport {
    type Result = ();

    fn handle(&mut self, Broken { epoch, detail }: Broken, _: &mut Context<Self>) {
        if epoch == self.epoch && self.line.is_some() {
            self.owner.do_send(TransportEvent::PagesBroken(detail));
        }
    }
}

/// Something of the connection of that epoch.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct OfEpoch {
    epoch: u64,
    what: FromLine,
}

#[derive(Clone, Debug)]
struct EpochEar {
    epoch: u64,
    addr: Addr<Transport>,
}

impl Ear for EpochEar {
    async fn tell(&self, what: FromLine) {
        let epoch = self.epoch;
        // The actor is gone only when nobody wants to hear of it.
        let _ = self.addr.send(OfEpoch { epoch, what }).await;
    }
}

impl Handler<OfEpoch> for Transport {
    type Result = ();

    fn handle(&mut self, OfEpoch { epoch, what }: OfEpoch, _: &mut Context<Self>) {
        // A line ends once, even where both its halves say so.
        if epoch != self.epoch || self.line.is_none() {
            return;
        }
        self.owner.do_send(match what {
            FromLine::Heard(message) => TransportEvent::Heard(message),
            FromLine::Lost(detail) => {
                self.line = None;
                self.pages.abort_all();
                TransportEvent::Lost(detail)
            }
        });
    }
}

/// Say this to the peer, if there is one.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Say(pub(crate) message::Message);

impl Handler<Say> for Transport {
    type Result = ();

    fn handle(&mut self, Say(message): Say, _: &mut Context<Self>) {
        if let Some(line) = &self.line {
            line.say(&message);
        }
    }
}

/// Let the last words arrive, then end; answered when all is closed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Close;

impl Handler<Close> for Transport {
    type Result = actix::ResponseFuture<()>;

    fn handle(&mut self, _: Close, ctx: &mut Context<Self>) -> Self::Result {
        self.epoch += 1;
        let line = self.line.take();
        let mut pages = std::mem::take(&mut self.pages);
        let connecting = self.connecting.take();
        ctx.stop();
        Box::pin(async move {
            if let Some(task) = connecting {
                task.abort();
                let _ = task.await;
            }
            if let Some(line) = line {
                line.close().await;
            }
            // The page streams end with their connection; their tasks are waited for.
            pages.shutdown().await;
        })
    }
}
