//! A UDP socket for quinn, with buffers for bulk data.
//!
//! It differs from quinn's own in three things: receive buffers are as large as a batch can get,
//! not as many times the largest packet; a batch that is larger than the kernel takes is split; and
//! a client learns that nobody listens, which QUIC itself does not see.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tracing::debug;

/// Kernel buffers, in bytes: a burst of this size is not lost while the receiver is busy. The
/// kernel takes less if it must.
const KERNEL_BUFFER: usize = 4 << 20;
/// The largest batch of packets the kernel takes in one call.
const LARGEST_BATCH: usize = 65_507;

/// A socket.
#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    refused: Notify,
}

impl Socket {
    /// A socket at `at`.
    pub(super) fn bind(at: SocketAddr) -> io::Result<Arc<Self>> {
        Self::new(StdSocket::bind(at)?)
    }

    /// A socket that talks with `to` only.
    pub(super) fn connect(to: SocketAddr) -> io::Result<Arc<Self>> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = StdSocket::bind(any)?;
        // Only a connected socket is told that nobody listens.
        socket.connect(to)?;
        Self::new(socket)
    }

    fn new(socket: StdSocket) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        let reference = SockRef::from(&socket);
        for result in [
            reference.set_recv_buffer_size(KERNEL_BUFFER),
            reference.set_send_buffer_size(KERNEL_BUFFER),
        ] {
            if let Err(e) = result {
                debug!("the size of a UDP socket's buffer was refused: {e}");
            }
        }
        Ok(Arc::new(Self {
            state: UdpSocketState::new((&socket).into())?,
            io: UdpSocket::from_std(socket)?,
            refused: Notify::new(),
        }))
    }

    /// Returns when the kernel has been told that nobody listens at the other end.
    pub(super) async fn refused(&self) {
        self.refused.notified().await;
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send((&self.io).into(), transmit)
        });
        match result {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => self.refused.notify_one(),
            // A datagram that was not sent is like one that was lost on the way. Those that look
            // for the path's largest size are too large at times.
            Err(e) => debug!("a datagram was not sent: {e}"),
            Ok(()) => {}
        }
        Ok(())
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(size) = transmit.segment_size else {
            return self.send(transmit);
        };
        let batch = (LARGEST_BATCH / size).max(1) * size;
        for contents in transmit.contents.chunks(batch) {
            // If the rest must wait, all is sent again later: QUIC drops what it has already.
            self.send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: (contents.len() > size).then_some(size),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let result = self.io.try_io(Interest::READABLE, || {
                self.state.recv((&self.io).into(), bufs, meta)
            });
            match result {
                Ok(received) => return Poll::Ready(Ok(received)),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    self.refused.notify_one();
                }
                // Not ready after all; or an error that anybody on the network can cause.
                Err(_) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        // The kernel joins packets to 64 KiB at most, and the endpoint's buffers are of this size.
        1
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits for the socket to be writable, for one of several connections.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Waiting>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}
