//! Both halves of a control stream, and the connection that ends with them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::{Connection, ReadError, RecvStream, SendStream, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::DONE;
use super::congestion::Closing;
use crate::{Control, ControlReader, ControlWriter, TransportError, explain};

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Of the streams of a connection, control goes first; page streams have 0.
const FIRST: i32 = 1;

/// Closes its connection when both halves are gone.
#[derive(Debug)]
struct Open {
    connection: Connection,
    closing: Closing,
    other: &'static str,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closing.begin();
        self.connection.close(DONE, b"");
    }
}

#[derive(Debug)]
struct Reader {
    stream: RecvStream,
    open: Arc<Open>,
}

#[derive(Debug)]
struct Writer {
    stream: SendStream,
    open: Arc<Open>,
}

/// The control stream of a connection with `other`.
pub(super) fn control(
    connection: Connection,
    closing: Closing,
    stream: (SendStream, RecvStream),
    other: &'static str,
) -> Control {
    // Fails for a stream that has ended already, which then does not matter.
    let _ = stream.0.set_priority(FIRST);
    let open = Arc::new(Open {
        connection,
        closing,
        other,
    });
    Control {
        reader: Box::new(Reader {
            stream: stream.1,
            open: open.clone(),
        }),
        writer: Box::new(Writer {
            stream: stream.0,
            open,
        }),
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(self.stream.poll_read_buf(cx, buf));
        Poll::Ready(result.map_err(|e| read_error(e, self.open.other)))
    }
}

impl ControlReader for Reader {}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(result.map_err(|e| write_error(e, self.open.other)))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error means that it has ended already.
        let _ = self.stream.finish();
        Poll::Ready(Ok(()))
    }
}

impl ControlWriter for Writer {
    fn finish(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // As in `poll_shutdown`.
            let _ = self.stream.finish();
            // Late or not, acknowledged or refused: there is nothing more to be done for them.
            let _ = timeout(LAST_WORDS, self.stream.stopped()).await;
        })
    }
}

/// Reading failed, of a stream from `other`.
pub(super) fn read_error(error: ReadError, other: &str) -> io::Error {
    match error {
        ReadError::ConnectionLost(e) => explain::quic_stream(&e, other),
        ReadError::Reset(_) => closed(other),
        e => e.into(),
    }
}

/// Writing failed, of a stream to `other`.
pub(super) fn write_error(error: WriteError, other: &str) -> io::Error {
    match error {
        WriteError::ConnectionLost(e) => explain::quic_stream(&e, other),
        WriteError::Stopped(_) => closed(other),
        e => e.into(),
    }
}

fn closed(other: &str) -> io::Error {
    let why = format!("{other} closed the stream");
    io::Error::new(io::ErrorKind::ConnectionReset, TransportError::Lost(why))
}
