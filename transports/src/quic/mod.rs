//! QUIC: one connection over UDP, TLS 1.3 inside.
//!
//! The control stream is the connection's only bidirectional stream, page streams are
//! unidirectional. QUIC shows a stream to the other end only when it has data: so the connecting
//! side begins each with a byte that says what it is. The accepting side answers that of the
//! control stream, and so a connection that has been made has been accepted at both ends: with TLS
//! 1.3 a client would otherwise learn of its refused certificate only later.
//!
//! Dropping both halves of a control stream closes the connection, and its page streams fail.
//! All streams share the connection's window: whoever accepts page streams must read them without
//! waiting for the control stream, or the window fills and the control stream waits for them. At
//! the sending side control goes first.

mod config;
mod congestion;
mod connect;
mod control;
mod listen;
mod pages;
mod socket;

pub use connect::QuicConnector;
pub use listen::QuicListener;

pub(crate) const NAME: &str = "quic";

const CONTROL: u8 = 0;
const PAGES: u8 = 1;
const ACCEPTED: u8 = 1;

/// The code with which a connection is closed that is no longer needed.
const DONE: quinn::VarInt = quinn::VarInt::from_u32(0);
