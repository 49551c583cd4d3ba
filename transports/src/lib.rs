//! Transports between two VM processes: QUIC, TCP with TLS, in-memory.
//!
//! A connection is one control stream both ways and N page streams from the connecting side. A
//! transport carries bytes, with TLS 1.3 and certificates on both sides; it knows nothing of
//! messages, migrations or tokens: who is at the other end beyond its certificate is for the
//! protocol to find out. The source [connects](Connector), the destination [accepts](Listener).

mod error;
mod explain;
mod handshakes;
pub mod keys;
mod kind;
pub mod limit;
pub mod memory;
mod pace;
pub mod quic;
pub mod tcp;
mod tls;

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

pub use error::TransportError;
pub use kind::{TransportKind, UnknownTransport, connector, listen};
pub use limit::Bandwidth;
pub use tls::TlsIdentity;

/// Most page streams of a connection.
pub const MAX_STREAMS: u16 = 64;

/// What is known of the link before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkHint {
    /// Speed in Mbit/s, for the size of windows; 0 is unknown.
    pub mbit: u64,
    /// Round trip in milliseconds; 0 is unknown.
    pub rtt_ms: u64,
}

/// The source's side of a transport: knows its destination and its certificates.
pub trait Connector: Send + Sync + fmt::Debug {
    /// `quic`, `tcp` or `memory`.
    fn name(&self) -> &'static str;

    /// From now on, all page streams of all its connections together send no faster than this.
    fn set_limit(&self, limit: Option<Bandwidth>);

    /// A new connection with `page_streams` page streams (none, to say a last word after a cut).
    /// Gives up after a bounded time.
    fn connect(&self, page_streams: u16) -> BoxFuture<'_, Result<Connection, TransportError>>;
}

/// A connection, at the side that made it.
#[derive(Debug)]
pub struct Connection {
    /// Both ways.
    pub control: Control,
    /// From here to there.
    pub pages: Vec<Box<dyn PageWriter>>,
}

/// A control stream. Dropping both halves ends its connection, page streams included, and may
/// lose what was written last; [`ControlWriter::finish`] first.
#[derive(Debug)]
pub struct Control {
    /// Bytes that come.
    pub reader: Box<dyn ControlReader>,
    /// Bytes that go.
    pub writer: Box<dyn ControlWriter>,
}

/// The reading half of a control stream.
pub trait ControlReader: AsyncRead + Send + Unpin + fmt::Debug {}

/// The writing half of a control stream.
pub trait ControlWriter: AsyncWrite + Send + Unpin + fmt::Debug {
    /// Ends the stream so that everything written arrives: returns when the peer has it all, or
    /// after a bounded time. The reading half may still be in use, or gone.
    fn finish(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A page stream's sending end.
pub trait PageWriter: Send + fmt::Debug {
    /// Sends `parts`, one after the other, keeping to the bandwidth limit. Returns when they are
    /// handed over to the kernel or to the transport's bounded buffers, flushed.
    ///
    /// Not safe to drop halfway, unless the stream is of no use any more.
    fn send<'a>(&'a mut self, parts: &'a [Bytes]) -> BoxFuture<'a, Result<(), TransportError>>;
}

/// A page stream's receiving end.
pub trait PageReader: AsyncRead + Send + Unpin + fmt::Debug {}

/// A stream that a peer has opened. Nothing of it has been read.
#[derive(Debug)]
pub enum Incoming {
    /// A control stream.
    Control(Control),
    /// A page stream.
    Page(Box<dyn PageReader>),
}

/// The destination's side of a transport. Peers without a trusted certificate never get as far as
/// [`Listener::accept`]. Dropping it closes the port; connections made live on.
pub trait Listener: Send + fmt::Debug {
    /// `quic`, `tcp` or `memory`.
    fn name(&self) -> &'static str;

    /// Where it listens.
    ///
    /// # Errors
    /// [`TransportError`].
    fn local_addr(&self) -> Result<SocketAddr, TransportError>;

    /// The next stream that a peer opens. Errors of single peers are logged and passed over; an
    /// error here means that the listener is of no use any more. Safe to drop halfway.
    fn accept(&mut self) -> BoxFuture<'_, Result<Incoming, TransportError>>;
}

/// More streams than a destination accepts are a mistake of the caller's.
fn check_streams(
    page_streams: u16,
    to: SocketAddr,
    transport: &'static str,
) -> Result<(), TransportError> {
    if page_streams <= MAX_STREAMS {
        return Ok(());
    }
    Err(TransportError::Connect {
        to,
        transport,
        why: format!("{page_streams} page streams are too many: {MAX_STREAMS} at most"),
    })
}
