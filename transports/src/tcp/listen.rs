//! The destination's side: takes connections and finds out what they are.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::{ACCEPTED, CONTROL, NAME, PAGES, READ_BUFFER, Stream};
use super::{control, pages, speaks_vmferry, tune};
use crate::handshakes::Handshakes;
use crate::{Incoming, LinkHint, Listener, TlsIdentity, TransportError, explain};

const OTHER: &str = "the peer";
/// A pause when the system has run out of something, before trying again.
const SHORT_OF: Duration = Duration::from_millis(100);

/// Listens on a TCP port.
///
/// It works while [`Listener::accept`] waits: what comes in between waits in the kernel. Dropping
/// it closes the port at once and breaks off handshakes; streams that were accepted live on.
pub struct TcpListener {
    socket: tokio::net::TcpListener,
    tls: TlsAcceptor,
    handshakes: Handshakes<Incoming>,
}

impl TcpListener {
    /// Listens at `at`; port 0 takes any free one. `hint` is of no use here: the kernel finds TCP's
    /// windows by itself.
    ///
    /// # Errors
    /// [`TransportError::Listen`] if the port cannot be had.
    pub async fn bind(
        at: SocketAddr,
        tls: &TlsIdentity,
        _hint: LinkHint,
    ) -> Result<Self, TransportError> {
        let socket =
            tokio::net::TcpListener::bind(at)
                .await
                .map_err(|source| TransportError::Listen {
                    at,
                    transport: NAME,
                    source,
                })?;
        Ok(Self {
            socket,
            tls: TlsAcceptor::from(tls.server()),
            handshakes: Handshakes::new(NAME),
        })
    }

    async fn next(&mut self) -> Result<Incoming, TransportError> {
        loop {
            let room = self.handshakes.room();
            let full_until = room.err().unwrap_or_else(Instant::now);
            tokio::select! {
                (_, stream) = self.handshakes.done() => return Ok(stream),
                connected = self.socket.accept(), if room.is_ok() => match connected {
                    Ok((socket, peer)) => {
                        let handshake = handshake(self.tls.clone(), socket);
                        self.handshakes.start(peer, async move {
                            handshake.await.map_err(|e| explain::io(&e, OTHER))
                        });
                    }
                    Err(e) => passing(e).await?,
                },
                () = sleep_until(full_until), if room.is_err() => {}
            }
        }
    }
}

/// Lets errors of single peers and of a busy system pass.
async fn passing(error: io::Error) -> Result<(), TransportError> {
    match error.kind() {
        io::ErrorKind::InvalidInput => Err(TransportError::Lost(error.to_string())),
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::Interrupted => Ok(()),
        _ => {
            warn!(transport = NAME, "cannot take a connection: {error}");
            sleep(SHORT_OF).await;
            Ok(())
        }
    }
}

async fn handshake(tls: TlsAcceptor, socket: TcpStream) -> io::Result<Incoming> {
    tune(&socket);
    let socket = BufReader::with_capacity(READ_BUFFER, socket);
    let mut stream = Stream::from(tls.accept(socket).await?);
    let refused = |why: String| io::Error::other(TransportError::Lost(why));
    if !speaks_vmferry(&stream) {
        return Err(refused(explain::no_common_protocol(OTHER)));
    }
    let kind = stream.read_u8().await?;
    if kind != CONTROL && kind != PAGES {
        return Err(refused(format!("unknown kind of stream {kind}")));
    }
    stream.write_all(&[ACCEPTED]).await?;
    stream.flush().await?;
    Ok(if kind == CONTROL {
        Incoming::Control(control::split(stream, OTHER))
    } else {
        Incoming::Page(pages::reader(stream))
    })
}

impl Listener for TcpListener {
    fn name(&self) -> &'static str {
        NAME
    }

    fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.socket
            .local_addr()
            .map_err(|e| TransportError::Lost(e.to_string()))
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<Incoming, TransportError>> {
        Box::pin(self.next())
    }
}

impl std::fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpListener")
            .field("socket", &self.socket)
            .field("handshakes", &self.handshakes)
            .finish_non_exhaustive()
    }
}
