//! The source's side: connections to one destination.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::{ConnectionError, Endpoint, ReadExactError, TokioRuntime};
use tokio::time::timeout;

use super::congestion::Closing;
use super::control::{control, write_error};
use super::socket::Socket;
use super::{ACCEPTED, CONTROL, NAME, PAGES, config, pages};
use crate::limit::Bandwidth;
use crate::pace::Pacer;
use crate::{Connection, Connector, LinkHint, PageWriter, TlsIdentity, TransportError};
use crate::{check_streams, explain, tls};

/// How long a connection may take to be made.
const LONGEST: Duration = Duration::from_secs(10);
const OTHER: &str = "the destination";

/// Connects to one destination over QUIC.
#[derive(Debug)]
pub struct QuicConnector {
    to: SocketAddr,
    name: String,
    tls: TlsIdentity,
    hint: LinkHint,
    pacer: Arc<Pacer>,
}

impl QuicConnector {
    /// A connector to `to`, whose certificate must be for `server_name`. `limit` holds for all page
    /// streams of all its connections together. `hint` sets how much may be in flight: 8 MiB if
    /// the link is not known.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if `server_name` can be no name.
    pub fn new(
        to: SocketAddr,
        server_name: &str,
        tls: &TlsIdentity,
        hint: LinkHint,
        limit: Option<Bandwidth>,
    ) -> Result<Self, TransportError> {
        tls::server_name(server_name)?;
        Ok(Self {
            to,
            name: server_name.to_owned(),
            tls: tls.clone(),
            hint,
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

    async fn open(&self, page_streams: u16) -> Result<Connection, String> {
        let socket = Socket::connect(self.to).map_err(|e| explain::io(&e, OTHER))?;
        // The endpoint lives as long as its connection.
        let endpoint = Endpoint::new_with_abstract_socket(
            config::endpoint(),
            None,
            socket.clone(),
            Arc::new(TokioRuntime),
        )
        .map_err(|e| explain::io(&e, OTHER))?;
        let closing = Closing::default();
        let config = config::client(&self.tls, self.hint, self.to.ip(), &closing)
            .map_err(|e| e.to_string())?;
        let connecting = endpoint
            .connect_with(config, self.to, &self.name)
            .map_err(|e| e.to_string())?;
        let connection = tokio::select! {
            connection = connecting => connection.map_err(lost)?,
            () = socket.refused() => {
                let refused = std::io::ErrorKind::ConnectionRefused;
                return Err(explain::io(&refused.into(), OTHER));
            }
        };

        let (mut writer, mut reader) = connection.open_bi().await.map_err(lost)?;
        writer
            .write_all(&[CONTROL])
            .await
            .map_err(|e| explain::io(&write_error(e, OTHER), OTHER))?;
        let mut answer = [0];
        reader.read_exact(&mut answer).await.map_err(|e| match e {
            ReadExactError::ReadError(quinn::ReadError::ConnectionLost(e)) => lost(e),
            e => e.to_string(),
        })?;
        if answer != [ACCEPTED] {
            return Err(explain::no_common_protocol(OTHER));
        }
        let mut pages: Vec<Box<dyn PageWriter>> = Vec::with_capacity(page_streams.into());
        for _ in 0..page_streams {
            let mut stream = connection.open_uni().await.map_err(lost)?;
            stream
                .write_all(&[PAGES])
                .await
                .map_err(|e| explain::io(&write_error(e, OTHER), OTHER))?;
            pages.push(pages::writer(stream, self.pacer.clone()));
        }
        Ok(Connection {
            control: control(connection, closing, (writer, reader), OTHER),
            pages,
        })
    }
}

fn lost(error: ConnectionError) -> String {
    explain::quic(&error, OTHER)
}

impl Connector for QuicConnector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn set_limit(&self, limit: Option<Bandwidth>) {
        self.pacer.set(limit);
    }

    fn connect(&self, page_streams: u16) -> BoxFuture<'_, Result<Connection, TransportError>> {
        Box::pin(async move {
            check_streams(page_streams, self.to, NAME)?;
            match timeout(LONGEST, self.open(page_streams)).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(why)) => Err(self.failed(why)),
                Err(_) => Err(self.failed(explain::no_answer(OTHER))),
            }
        })
    }
}
