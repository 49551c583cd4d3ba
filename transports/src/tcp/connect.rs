//! The source's side: connections to one destination.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{ACCEPTED, CONTROL, NAME, PAGES, SMALL_READ_BUFFER, Stream};
use super::{control, pages, speaks_vmferry, tune};
use crate::limit::Bandwidth;
use crate::pace::Pacer;
use crate::{Connection, Connector, LinkHint, PageWriter, TlsIdentity, TransportError};
use crate::{check_streams, explain, tls};

/// How long one stream may take to be made.
const LONGEST: Duration = Duration::from_secs(10);
/// Page streams made at the same time: few enough for a destination that limits handshakes.
const AT_ONCE: usize = 16;
const OTHER: &str = "the destination";

/// Connects to one destination over TCP.
pub struct TcpConnector {
    to: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
    pacer: Arc<Pacer>,
}

impl TcpConnector {
    /// A connector to `to`, whose certificate must be for `server_name`. `limit` holds for all page
    /// streams of all its connections together. The kernel finds TCP's windows by itself: `hint`
    /// is of no use here.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if `server_name` can be no name.
    pub fn new(
        to: SocketAddr,
        server_name: &str,
        tls: &TlsIdentity,
        _hint: LinkHint,
        limit: Option<Bandwidth>,
    ) -> Result<Self, TransportError> {
        Ok(Self {
            to,
            name: tls::server_name(server_name)?,
            tls: TlsConnector::from(tls.client()),
            pacer: Arc::new(Pacer::new(limit)),
        })
    }

    fn failed(&self, why: String) -> TransportError {
        TransportError::Connect {
            to: self.to,
            transport: NAME,
            why,
        }
    }

    /// A stream of a kind, accepted by the destination.
    async fn open(&self, kind: u8) -> Result<Stream, TransportError> {
        match timeout(LONGEST, self.handshake(kind)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) => Err(self.failed(explain::io(&e, OTHER))),
            Err(_) => Err(self.failed(explain::no_answer(OTHER))),
        }
    }

    async fn handshake(&self, kind: u8) -> io::Result<Stream> {
        let socket = TcpStream::connect(self.to).await?;
        tune(&socket);
        let socket = BufReader::with_capacity(SMALL_READ_BUFFER, socket);
        let stream = self.tls.connect(self.name.clone(), socket).await?;
        let mut stream = Stream::from(stream);
        if !speaks_vmferry(&stream) {
            let why = explain::no_common_protocol(OTHER);
            return Err(io::Error::other(TransportError::Lost(why)));
        }
        stream.write_all(&[kind]).await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            ACCEPTED => Ok(stream),
            _ => Err(io::Error::other(TransportError::Lost(
                explain::no_common_protocol(OTHER),
            ))),
        }
    }
}

impl Connector for TcpConnector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn set_limit(&self, limit: Option<Bandwidth>) {
        self.pacer.set(limit);
    }

    fn connect(&self, page_streams: u16) -> BoxFuture<'_, Result<Connection, TransportError>> {
        Box::pin(async move {
            check_streams(page_streams, self.to, NAME)?;
            let control = control::split(self.open(CONTROL).await?, OTHER);
            let pages = stream::iter(0..page_streams)
                .map(|_| self.open(PAGES))
                .buffered(AT_ONCE)
                .map_ok(|stream| pages::writer(stream, self.pacer.clone()))
                .try_collect::<Vec<Box<dyn PageWriter>>>()
                .await?;
            Ok(Connection { control, pages })
        })
    }
}

impl std::fmt::Debug for TcpConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpConnector")
            .field("to", &self.to)
            .field("name", &self.name)
            .field("pacer", &self.pacer)
            .finish_non_exhaustive()
    }
}
