//! Connections within a process, for tests: no sockets, no certificates, no errors but closing.
//!
//! Streams are bounded pipes. As with TCP, page streams end when their holders drop them, not with
//! the control stream.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{
    AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split,
};
use tokio::sync::mpsc;

use crate::limit::Bandwidth;
use crate::pace::Pacer;
use crate::{
    Connection, Connector, Control, ControlReader, ControlWriter, Incoming, Listener, MAX_STREAMS,
    PageReader, PageWriter, TransportError,
};

const NAME: &str = "memory";
/// What fits into a pipe, in bytes.
const PIPE: usize = 256 << 10;
/// Streams that have been opened and not yet accepted.
const WAITING: usize = 2 * MAX_STREAMS as usize;

/// A connector and its listener. `limit` holds for all page streams together.
pub fn pair(limit: Option<Bandwidth>) -> (MemoryConnector, MemoryListener) {
    let (opened, incoming) = mpsc::channel(WAITING);
    let connector = MemoryConnector {
        opened,
        pacer: Arc::new(Pacer::new(limit)),
    };
    (connector, MemoryListener { incoming })
}

/// The connecting side.
#[derive(Clone, Debug)]
pub struct MemoryConnector {
    opened: mpsc::Sender<Incoming>,
    pacer: Arc<Pacer>,
}

/// The accepting side.
#[derive(Debug)]
pub struct MemoryListener {
    incoming: mpsc::Receiver<Incoming>,
}

/// There is no address: this stands for one.
fn nowhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

impl Connector for MemoryConnector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn set_limit(&self, limit: Option<Bandwidth>) {
        self.pacer.set(limit);
    }

    fn connect(&self, page_streams: u16) -> BoxFuture<'_, Result<Connection, TransportError>> {
        Box::pin(async move {
            crate::check_streams(page_streams, nowhere(), NAME)?;
            let gone = || TransportError::Connect {
                to: nowhere(),
                transport: NAME,
                why: "the listener is gone".to_owned(),
            };
            let (near, far) = duplex(PIPE);
            self.opened
                .send(Incoming::Control(control(far)))
                .await
                .map_err(|_| gone())?;
            let mut pages: Vec<Box<dyn PageWriter>> = Vec::with_capacity(page_streams.into());
            for _ in 0..page_streams {
                let (writer, reader) = duplex(PIPE);
                self.opened
                    .send(Incoming::Page(Box::new(Pages { pipe: reader })))
                    .await
                    .map_err(|_| gone())?;
                pages.push(Box::new(PagesOut {
                    pipe: writer,
                    pacer: self.pacer.clone(),
                }));
            }
            Ok(Connection {
                control: control(near),
                pages,
            })
        })
    }
}

impl Listener for MemoryListener {
    fn name(&self) -> &'static str {
        NAME
    }

    fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        Ok(nowhere())
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<Incoming, TransportError>> {
        Box::pin(async move { self.incoming.recv().await.ok_or(TransportError::Ended) })
    }
}

fn control(pipe: DuplexStream) -> Control {
    let (reader, writer) = split(pipe);
    Control {
        reader: Box::new(Reader { pipe: reader }),
        writer: Box::new(Writer { pipe: writer }),
    }
}

#[derive(Debug)]
struct Reader {
    pipe: ReadHalf<DuplexStream>,
}

#[derive(Debug)]
struct Writer {
    pipe: WriteHalf<DuplexStream>,
}

#[derive(Debug)]
struct Pages {
    pipe: DuplexStream,
}

#[derive(Debug)]
struct PagesOut {
    pipe: DuplexStream,
    pacer: Arc<Pacer>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl ControlReader for Reader {}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl ControlWriter for Writer {
    fn finish(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        // What is in the pipe stays readable when this end is gone.
        Box::pin(async move {
            let _ = self.pipe.shutdown().await;
        })
    }
}

impl AsyncRead for Pages {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl PageReader for Pages {}

impl PageWriter for PagesOut {
    fn send<'a>(&'a mut self, parts: &'a [Bytes]) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            for part in parts {
                let mut rest = &part[..];
                while !rest.is_empty() {
                    let piece = self.pacer.take(rest.len()).await;
                    self.pipe.write_all(&rest[..piece]).await.map_err(|_| {
                        TransportError::Lost("the page stream is closed".to_owned())
                    })?;
                    rest = &rest[piece..];
                }
            }
            Ok(())
        })
    }
}
