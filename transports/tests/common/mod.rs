//! Pairs of connector and listener, and what the suites do with them.

#![allow(dead_code, reason = "each suite uses its own part")]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use vmferry_transports::keys::Authority;
use vmferry_transports::{
    Connection, Connector, Control, Incoming, LinkHint, Listener, PageReader, TlsIdentity,
    TransportKind, connector, listen, memory,
};

/// The name of the listening host.
pub(crate) const HOST: &str = "host-b";

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    Tcp,
    Quic,
}

impl Over {
    pub(crate) fn kind(self) -> TransportKind {
        match self {
            Self::Memory => panic!("not between hosts"),
            Self::Tcp => TransportKind::Tcp,
            Self::Quic => TransportKind::Quic,
        }
    }
}

/// Any free port of this host.
pub(crate) fn here() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Identities of two hosts of one authority.
pub(crate) fn hosts() -> (TlsIdentity, TlsIdentity) {
    let authority = Authority::new().unwrap();
    let of = |name| authority.issue(name).unwrap().identity().unwrap();
    (of("host-a"), of(HOST))
}

pub(crate) async fn pair(over: Over) -> (Arc<dyn Connector>, Box<dyn Listener>) {
    if over == Over::Memory {
        let (connector, listener) = memory::pair(None);
        return (Arc::new(connector), Box::new(listener));
    }
    let (a, b) = hosts();
    let hint = LinkHint::default();
    let listener = listen(over.kind(), here(), &b, hint).await.unwrap();
    let to = listener.local_addr().unwrap();
    let connector = connector(over.kind(), to, HOST, &a, hint, None).unwrap();
    (connector, listener)
}

/// Accepts a control stream and `pages` page streams, in any order.
pub(crate) async fn accept(
    listener: &mut dyn Listener,
    pages: u16,
) -> (Control, Vec<Box<dyn PageReader>>) {
    let mut control = None;
    let mut readers = Vec::new();
    while control.is_none() || readers.len() < pages.into() {
        match listener.accept().await.unwrap() {
            Incoming::Control(stream) => assert!(control.replace(stream).is_none()),
            Incoming::Page(stream) => readers.push(stream),
        }
    }
    (control.unwrap(), readers)
}

/// A connection, both ends of it.
pub(crate) async fn connect(
    connector: &dyn Connector,
    listener: &mut dyn Listener,
    pages: u16,
) -> (Connection, Control, Vec<Box<dyn PageReader>>) {
    let (near, (control, readers)) =
        tokio::join!(connector.connect(pages), accept(listener, pages));
    let near = near.unwrap();
    assert_eq!(near.pages.len(), usize::from(pages));
    (near, control, readers)
}

/// Bytes that tell where they belong.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Reads to the end, and says whether it ended well.
pub(crate) async fn drain(reader: &mut (impl AsyncRead + Unpin + ?Sized)) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let well = reader.read_to_end(&mut all).await.is_ok();
    (all, well)
}

/// A test that hangs fails: it is not waited for by anything that would be right.
pub(crate) async fn bounded<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what)
        .await
        .expect("it hangs")
}
