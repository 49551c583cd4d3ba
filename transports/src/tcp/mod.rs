//! TCP with TLS 1.3: a connection per stream.
//!
//! The connecting side says in the first byte inside TLS what the stream is, and the accepting side
//! answers with one byte. So a connection that has been made has been accepted at both ends: with
//! TLS 1.3 a client would otherwise learn of its refused certificate only when it reads.
//!
//! A control stream and its page streams are connections of their own: when the control stream
//! ends, the others end only when their holders drop them.

mod connect;
mod control;
mod listen;
mod outstanding;
mod pages;

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tracing::debug;

pub use connect::TcpConnector;
pub use listen::TcpListener;

pub(crate) const NAME: &str = "tcp";

const CONTROL: u8 = 0;
const PAGES: u8 = 1;
const ACCEPTED: u8 = 1;

/// What a silent peer gets before its connection counts as lost.
const SILENCE: Duration = Duration::from_secs(10);

/// TLS fetches a few KiB at a time: with a buffer below it, most of these cost no system call.
type Socket = BufReader<TcpStream>;
type Stream = TlsStream<Socket>;

/// The buffer below TLS, in bytes, at the end that reads pages. Larger ones were slower: they push
/// the rest out of the processor's nearest cache.
const READ_BUFFER: usize = 32 << 10;
/// The same at the end that reads control messages only.
const SMALL_READ_BUFFER: usize = 16 << 10;

/// What the kernel takes of a stream before it has sent it, in bytes. By default it takes as much as
/// its buffer holds, megabytes: then a slow link looks quick for as long, what is urgent waits
/// behind them, and pages grow old in them.
const UNSENT: u32 = 256 << 10;

/// Sets what a stream between two hosts needs. What the system does not know is left out.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE / 2)
        .with_interval(SILENCE / 5)
        .with_retries(3);
    let settings: [io::Result<()>; 4] = [
        // Messages go at once; pages come in large pieces anyway.
        socket.set_tcp_nodelay(true),
        socket.set_tcp_notsent_lowat(UNSENT),
        // Finds a peer that is gone while nothing is on its way,
        socket.set_tcp_keepalive(&keepalive),
        // and while something is: without it the system tries for a quarter of an hour.
        socket.set_tcp_user_timeout(Some(SILENCE)),
    ];
    for error in settings.into_iter().filter_map(Result::err) {
        debug!("a setting of a TCP socket was refused: {error}");
    }
}

/// The protocol that was agreed on must be ours: TLS lets peers pass that name none.
fn speaks_vmferry(stream: &Stream) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(crate::tls::ALPN)
}
