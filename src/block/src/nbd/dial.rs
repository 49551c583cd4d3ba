//! Dialling a server: connect, negotiate, all within a bounded time. Blocks: on a thread of its
//! own, never on the disk's.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::connection::Wire;
use super::proto::{Export, Handshake, Step, Wish};
use super::tls;
use super::uri::{Address, NbdUri};

/// How long a server may take from the first packet to the export.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A session that has just begun. Its socket does not block.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) wire: Wire,
    pub(super) export: Export,
}

struct Deadline(Instant);

impl Deadline {
    /// What is left, more than nothing.
    fn left(&self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

/// Begins a session, within [`PATIENCE`] (and the time that the resolver takes for a name).
///
/// # Errors
/// In words, with what to do.
pub(super) fn dial(uri: &NbdUri) -> Result<Dialled, String> {
    let deadline = Deadline(Instant::now() + PATIENCE);
    let address = &uri.address;
    let socket = connect(address, &deadline).map_err(|e| {
        format!(
            "cannot reach an NBD server at {address}: {}; check that it runs and listens there",
            in_words(&e)
        )
    })?;
    let mut wire = Wire::new(socket);
    let export = negotiate(uri, &mut wire, &deadline)?;
    let ready = wire.socket().set_nonblocking(true);
    ready.map_err(|e| format!("the socket cannot be used: {e}"))?;
    Ok(Dialled { wire, export })
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("it does not answer within {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}

fn connect(address: &Address, deadline: &Deadline) -> io::Result<Socket> {
    match address {
        Address::Unix(path) => connect_unix(path, deadline),
        Address::Tcp { host, port } => {
            let found: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs()?.collect();
            let mut error = ErrorKind::NotFound.into();
            for (i, address) in found.iter().enumerate() {
                // Each gets its share: the first may be a black hole.
                let share = deadline.left()? / (found.len() - i) as u32;
                match connect_tcp(*address, share) {
                    Ok(socket) => return Ok(socket),
                    Err(e) => error = e,
                }
            }
            Err(error)
        }
    }
}

fn connect_unix(path: &Path, deadline: &Deadline) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Bounds the wait for a place in the server's backlog.
    socket.set_write_timeout(Some(deadline.left()?))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn connect_tcp(address: SocketAddr, timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect_timeout(&address.into(), timeout)?;
    socket.set_tcp_nodelay(true)?;
    // Probes, so that a server's host that has forgotten the connection says so with a reset ...
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&probes)?;
    // ... and no end by silence: longest that the kernel knows, 24 days.
    socket.set_tcp_user_timeout(Some(Duration::from_millis(i32::MAX as u64)))?;
    Ok(socket)
}

fn negotiate(uri: &NbdUri, wire: &mut Wire, deadline: &Deadline) -> Result<Export, String> {
    let mut handshake = Handshake::new(Wish {
        export: uri.export.clone(),
        tls: uri.tls.is_some(),
    });
    let mut buffer = Vec::new();
    loop {
        let failed = |e: &io::Error| lost(uri, handshake.waits_for(), e);
        let step = handshake.step().map_err(|e| at(uri, &e))?;
        if let Step::Ready(export) = step {
            return Ok(export);
        }
        let Step::Read(len) = step else {
            shake(uri, wire, deadline)?;
            handshake.tls_started();
            send(wire, &handshake.output(), deadline)
                .map_err(|e| lost(uri, handshake.waits_for(), &e))?;
            continue;
        };
        buffer.resize(len, 0);
        read(wire, &mut buffer, deadline).map_err(|e| failed(&e))?;
        let received = handshake.receive(&buffer);
        let sent = send(wire, &handshake.output(), deadline);
        received.map_err(|e| at(uri, &e))?;
        sent.map_err(|e| lost(uri, handshake.waits_for(), &e))?;
    }
}

fn at(uri: &NbdUri, why: &dyn std::fmt::Display) -> String {
    format!(
        "NBD server at {}, export '{}': {why}",
        uri.address, uri.export
    )
}

fn lost(uri: &NbdUri, waits_for: &str, error: &io::Error) -> String {
    match (error.kind(), &uri.tls) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => at(
            uri,
            &format!(
                "it has accepted the connection and does not send {waits_for} within {} s: check \
                 that it is an NBD server, runs (is not stopped) and takes one more client",
                PATIENCE.as_secs()
            ),
        ),
        (ErrorKind::InvalidData, Some(parameters)) => at(uri, &tls::explain(error, parameters)),
        (_, tls) => {
            let also = match tls {
                Some(tls) => format!(
                    ", whether it accepts client-cert.pem in {} (or wants one)",
                    tls.certificates.display()
                ),
                None => String::new(),
            };
            at(
                uri,
                &format!(
                    "it has closed the connection ({error}) instead of sending {waits_for}: check \
                     the export's name, whether the server takes more clients{also}, and its log"
                ),
            )
        }
    }
}

fn shake(uri: &NbdUri, wire: &mut Wire, deadline: &Deadline) -> Result<(), String> {
    let Some(parameters) = &uri.tls else {
        return Err("TLS was not asked for".to_owned());
    };
    let (config, name) = tls::client(parameters)?;
    let started = wire.start_tls(config, name);
    started.map_err(|e| at(uri, &format!("TLS cannot begin: {e}")))?;
    loop {
        let step = limit(wire, deadline).and_then(|()| wire.shake());
        if step.map_err(|e| lost(uri, "its part of TLS", &e))? {
            return Ok(());
        }
    }
}

/// Lets no call on the socket block for longer than what is left.
fn limit(wire: &Wire, deadline: &Deadline) -> io::Result<()> {
    let left = Some(deadline.left()?);
    wire.socket().set_read_timeout(left)?;
    wire.socket().set_write_timeout(left)
}

fn read(wire: &mut Wire, buffer: &mut [u8], deadline: &Deadline) -> io::Result<()> {
    let mut have = 0;
    while have < buffer.len() {
        limit(wire, deadline)?;
        match wire.read(&mut buffer[have..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => have += len,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn send(wire: &mut Wire, mut bytes: &[u8], deadline: &Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        limit(wire, deadline)?;
        match wire.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The server has closed, and may have said why: in TLS, that it refuses us.
            Err(e) => match wire.read(&mut [0]) {
                Err(why) if why.kind() == ErrorKind::InvalidData => return Err(why),
                _ => return Err(e),
            },
        }
    }
    wire.flush()
}
