//! The transports by name, for configuration and command lines.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::limit::Bandwidth;
use crate::{Connector, LinkHint, Listener, TlsIdentity, TransportError, quic, tcp};

/// A transport between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// QUIC: one connection over UDP.
    Quic,
    /// TCP with TLS: a connection per stream.
    Tcp,
}

/// There is no transport of that name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no transport is called {0:?}: it is \"quic\" or \"tcp\"")]
pub struct UnknownTransport(pub String);

impl TransportKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tcp];

    /// `quic` or `tcp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => quic::NAME,
            Self::Tcp => tcp::NAME,
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = UnknownTransport;

    fn from_str(name: &str) -> Result<Self, UnknownTransport> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownTransport(name.to_owned()))
    }
}

/// A connector to `to`, whose certificate must be for `server_name`. `limit` holds for all page
/// streams of all its connections together.
///
/// # Errors
/// [`TransportError::Tls`] if the name cannot be one.
pub fn connector(
    kind: TransportKind,
    to: SocketAddr,
    server_name: &str,
    tls: &TlsIdentity,
    hint: LinkHint,
    limit: Option<Bandwidth>,
) -> Result<Arc<dyn Connector>, TransportError> {
    Ok(match kind {
        TransportKind::Quic => {
            Arc::new(quic::QuicConnector::new(to, server_name, tls, hint, limit)?)
        }
        TransportKind::Tcp => Arc::new(tcp::TcpConnector::new(to, server_name, tls, hint, limit)?),
    })
}

/// A listener at `at`; port 0 takes any free one ([`Listener::local_addr`]).
///
/// # Errors
/// [`TransportError::Listen`] if the port cannot be had.
pub async fn listen(
    kind: TransportKind,
    at: SocketAddr,
    tls: &TlsIdentity,
    hint: LinkHint,
) -> Result<Box<dyn Listener>, TransportError> {
    Ok(match kind {
        TransportKind::Quic => Box::new(quic::QuicListener::bind(at, tls, hint).await?),
        TransportKind::Tcp => Box::new(tcp::TcpListener::bind(at, tls, hint).await?),
    })
}
