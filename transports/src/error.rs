//! Why a transport failed, in words that say what to do.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// Why a transport failed.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No connection could be made.
    #[error("cannot connect to {to} by {transport}: {why}")]
    Connect {
        /// The peer.
        to: SocketAddr,
        /// The transport.
        transport: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// The port cannot be listened on.
    #[error("cannot listen on {at} by {transport}")]
    Listen {
        /// Address and port.
        at: SocketAddr,
        /// The transport.
        transport: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Certificates or keys that cannot be used.
    #[error("{what}: {why}")]
    Tls {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The connection was lost.
    #[error("{0}")]
    Lost(String),
    /// The listener has ended.
    #[error("the listener has ended")]
    Ended,
}
