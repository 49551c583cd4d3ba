//! Both halves of a control stream, and how it ends so that the last words arrive.
//!
//! A TCP socket that is closed while it holds received bytes that nobody has read, or that receives
//! more later, resets its connection, and a reset throws away what was sent last. So
//! [`ControlWriter::finish`] says that it is done, and then keeps the socket open and reads, and
//! drops, whatever comes until the peer is done too. The reading half may be in use meanwhile: it
//! then sees the end itself, or leaves the socket behind when it is dropped.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Stream;
use crate::{Control, ControlReader, ControlWriter, explain};

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where a reading half leaves what its writing half needs to end well.
#[derive(Debug, Default)]
struct Handover {
    left: Mutex<Left>,
    changed: Notify,
}

#[derive(Debug, Default)]
enum Left {
    /// It is in use.
    #[default]
    InUse,
    /// It was dropped before the end of the stream.
    Unread(ReadHalf<Stream>),
    /// It has seen the end of the stream, or an error.
    Ended,
}

impl Handover {
    fn leave(&self, left: Left) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        self.changed.notify_one();
    }

    /// Takes a half that was left behind; `Err` when there will be none.
    fn take(&self) -> Result<Option<ReadHalf<Stream>>, ()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *left) {
            Left::InUse => Ok(None),
            Left::Unread(half) => Ok(Some(half)),
            Left::Ended => Err(()),
        }
    }

    /// Returns when the peer has ended its side.
    async fn peer_is_done(&self) {
        loop {
            match self.take() {
                Ok(Some(mut half)) => {
                    let mut ignored = [0; 4096];
                    while half.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
                    return;
                }
                Ok(None) => self.changed.notified().await,
                Err(()) => return,
            }
        }
    }
}

#[derive(Debug)]
struct Reader {
    /// Gone once the stream has ended.
    half: Option<ReadHalf<Stream>>,
    handover: Arc<Handover>,
    other: &'static str,
}

#[derive(Debug)]
struct Writer {
    half: WriteHalf<Stream>,
    handover: Arc<Handover>,
    other: &'static str,
}

/// A control stream of a connection with `other`.
pub(super) fn split(stream: Stream, other: &'static str) -> Control {
    let (reader, writer) = tokio::io::split(stream);
    let handover = Arc::new(Handover::default());
    Control {
        reader: Box::new(Reader {
            half: Some(reader),
            handover: handover.clone(),
            other,
        }),
        writer: Box::new(Writer {
            half: writer,
            handover,
            other,
        }),
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Some(half) = &mut self.half else {
            return Poll::Ready(Ok(()));
        };
        let result = ready!(Pin::new(half).poll_read(cx, buf));
        let ended = buf.remaining() > 0 && buf.filled().len() == before;
        if result.is_err() || ended {
            self.half = None;
            self.handover.leave(Left::Ended);
        }
        Poll::Ready(result.map_err(|e| explain::stream(e, self.other)))
    }
}

impl ControlReader for Reader {}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(half) = self.half.take() {
            self.handover.leave(Left::Unread(half));
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.half).poll_write(cx, buf));
        Poll::Ready(result.map_err(|e| explain::stream(e, self.other)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.half).poll_flush(cx));
        Poll::Ready(result.map_err(|e| explain::stream(e, self.other)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.half).poll_shutdown(cx));
        Poll::Ready(result.map_err(|e| explain::stream(e, self.other)))
    }
}

impl ControlWriter for Writer {
    fn finish(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let ended = timeout(LAST_WORDS, async {
                if self.half.shutdown().await.is_ok() {
                    self.handover.peer_is_done().await;
                }
            });
            // Late or not: there is nothing more to be done for them.
            let _ = ended.await;
        })
    }
}
