//! The destination's side: takes connections and the streams that peers open in them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::{Connection, Endpoint, RecvStream, SendStream, TokioRuntime};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::congestion::Closing;
use super::control::control;
use super::socket::Socket;
use super::{ACCEPTED, CONTROL, DONE, NAME, PAGES, config, pages};
use crate::handshakes::Handshakes;
use crate::{Incoming, LinkHint, Listener, MAX_STREAMS, TlsIdentity, TransportError, explain};

const OTHER: &str = "the peer";
/// Streams that have been opened and not yet accepted. When there are more, those who open them
/// wait.
const WAITING: usize = MAX_STREAMS as usize;
/// Connections at the same time, of peers that have shown a certificate.
const CONNECTIONS: usize = 64;
/// How long a stream may take to say what it is.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// Listens on a UDP port.
///
/// All its connections share the port. Dropping it turns new peers away at once and breaks off
/// handshakes and connections none of whose streams was accepted. The others live on, and the port
/// stays taken until the last of them has ended; without any it is free as soon as the runtime
/// comes to it.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: Endpoint,
    tls: TlsIdentity,
    hint: LinkHint,
    handshakes: Handshakes<(Connection, Closing)>,
    connections: JoinSet<()>,
    opened: mpsc::Sender<Incoming>,
    incoming: mpsc::Receiver<Incoming>,
}

impl QuicListener {
    /// Listens at `at`; port 0 takes any free one. `hint` sets how much may be in flight to here: 8
    /// MiB per connection if the link is not known.
    ///
    /// # Errors
    /// [`TransportError::Listen`] if the port cannot be had.
    pub async fn bind(
        at: SocketAddr,
        tls: &TlsIdentity,
        hint: LinkHint,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen {
            at,
            transport: NAME,
            source,
        };
        let socket = Socket::bind(at).map_err(failed)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            config::endpoint(),
            Some(config::server(tls, hint, at.ip(), &Closing::default())?),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(failed)?;
        let (opened, incoming) = mpsc::channel(WAITING);
        Ok(Self {
            endpoint,
            tls: tls.clone(),
            hint,
            handshakes: Handshakes::new(NAME),
            connections: JoinSet::new(),
            opened,
            incoming,
        })
    }

    async fn next(&mut self) -> Result<Incoming, TransportError> {
        loop {
            let room = self.handshakes.room();
            let full_until = room.err().unwrap_or_else(Instant::now);
            tokio::select! {
                Some(stream) = self.incoming.recv() => return Ok(stream),
                (peer, (connection, closing)) = self.handshakes.done() => {
                    self.connected(peer, connection, closing);
                }
                Some(_) = self.connections.join_next() => {}
                arrived = self.endpoint.accept(), if room.is_ok() => match arrived {
                    Some(arrived) => self.arrived(arrived)?,
                    None => return Err(TransportError::Ended),
                },
                () = sleep_until(full_until), if room.is_err() => {}
            }
        }
    }

    fn arrived(&mut self, peer: quinn::Incoming) -> Result<(), TransportError> {
        let from = peer.remote_address();
        if self.handshakes.busy() && peer.may_retry() {
            // Whether it is really at that address costs a round trip, and no place here.
            if let Err(e) = peer.retry() {
                debug!(transport = NAME, peer = %from, "cannot ask for another try: {e}");
            }
            return Ok(());
        }
        // A configuration of its own, as there is one congestion control per connection.
        let closing = Closing::default();
        let config = config::server(&self.tls, self.hint, from.ip(), &closing)?;
        self.handshakes.start(from, async move {
            let connection = peer
                .accept_with(Arc::new(config))
                .map_err(|e| explain::quic(&e, OTHER))?
                .await
                .map_err(|e| explain::quic(&e, OTHER))?;
            Ok((connection, closing))
        });
        Ok(())
    }

    fn connected(&mut self, peer: SocketAddr, connection: Connection, closing: Closing) {
        if self.connections.len() >= CONNECTIONS {
            warn!(transport = NAME, %peer, "peer turned away: there are {CONNECTIONS} connections");
            return;
        }
        let opened = self.opened.clone();
        self.connections.spawn(async move {
            if let Err(why) = streams(&connection, &closing, &opened).await {
                warn!(transport = NAME, %peer, "connection closed: {why}");
                connection.close(DONE, why.as_bytes());
            }
        });
    }
}

/// Passes on the streams of a connection until it ends.
async fn streams(
    connection: &Connection,
    closing: &Closing,
    opened: &mpsc::Sender<Incoming>,
) -> Result<(), String> {
    let control = async {
        let stream = timeout(FIRST_BYTE, connection.accept_bi())
            .await
            .map_err(|_| "no control stream".to_owned())?
            .map_err(|e| explain::quic(&e, OTHER))?;
        let stream = accepted(stream).await?;
        let control = control(connection.clone(), closing.clone(), stream, OTHER);
        opened
            .send(Incoming::Control(control))
            .await
            .map_err(|_| "the listener is gone".to_owned())
    };
    let pages = async {
        // Ends with the connection, for whatever reason: whoever holds the control stream sees it.
        while let Ok(mut stream) = connection.accept_uni().await {
            expect(&mut stream, PAGES).await?;
            if opened
                .send(Incoming::Page(pages::reader(stream)))
                .await
                .is_err()
            {
                break;
            }
        }
        debug!(transport = NAME, "a connection has ended");
        Ok(())
    };
    tokio::try_join!(control, pages).map(|_| ())
}

async fn accepted(
    mut stream: (SendStream, RecvStream),
) -> Result<(SendStream, RecvStream), String> {
    expect(&mut stream.1, CONTROL).await?;
    stream
        .0
        .write_all(&[ACCEPTED])
        .await
        .map_err(|e| e.to_string())?;
    Ok(stream)
}

/// A stream's first byte must be `kind`.
async fn expect(stream: &mut RecvStream, kind: u8) -> Result<(), String> {
    let mut first = [0];
    timeout(FIRST_BYTE, stream.read_exact(&mut first))
        .await
        .map_err(|_| "a stream that does not say what it is".to_owned())?
        .map_err(|e| e.to_string())?;
    if first == [kind] {
        Ok(())
    } else {
        Err(format!("unknown kind of stream {}", first[0]))
    }
}

impl Listener for QuicListener {
    fn name(&self) -> &'static str {
        NAME
    }

    fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.endpoint
            .local_addr()
            .map_err(|e| TransportError::Lost(e.to_string()))
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<Incoming, TransportError>> {
        Box::pin(self.next())
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        let endpoint = self.endpoint.clone();
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(turn_away(endpoint));
            }
            // Nobody can be answered.
            Err(_) => endpoint.set_server_config(None),
        }
    }
}

/// Tells those who come that they are too late, until the last connection has ended.
async fn turn_away(endpoint: Endpoint) {
    loop {
        tokio::select! {
            biased;
            () = endpoint.wait_idle() => return,
            arrived = endpoint.accept() => match arrived {
                Some(peer) => peer.refuse(),
                None => return,
            },
        }
    }
}
