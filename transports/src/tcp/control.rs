//! Both halves of a control stream, and how it ends so that the last words arrive.
//!
//! A TCP socket that is closed while it holds received bytes that nobody has read, or that receives
//! more later, resets its connection, and a reset throws away what is still on its way to the peer.
//! What the peer's kernel has, the peer can read (on Linux a reset leaves the receive queue alone).
//! So [`ControlWriter::finish`] keeps the socket open until the peer's kernel has acknowledged
//! everything, whatever becomes of the reading half.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{sleep, timeout};

use super::Stream;
use super::outstanding::outstanding;
use crate::{Control, ControlReader, ControlWriter, explain};

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The kernel has to be asked whether all is acknowledged: soon, and then less and less often.
const FIRST_ASKED: Duration = Duration::from_micros(500);
const LEAST_OFTEN: Duration = Duration::from_millis(20);

/// What both halves share. Held for as long as one call takes that does not wait.
#[derive(Clone, Debug)]
struct Shared {
    stream: Arc<Mutex<Stream>>,
    other: &'static str,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn words<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(result.map_err(|e| explain::stream(e, self.other)))
    }

    /// Returns when the peer's kernel has all that was written, its end included.
    async fn acknowledged(&self) {
        let mut pause = FIRST_ASKED;
        while outstanding(self.lock().get_ref().0.get_ref()).is_ok_and(|bytes| bytes > 0) {
            sleep(pause).await;
            pause = LEAST_OFTEN.min(pause * 2);
        }
    }
}

#[derive(Debug)]
struct Reader(Shared);

#[derive(Debug)]
struct Writer(Shared);

/// A control stream of a connection with `other`.
pub(super) fn split(stream: Stream, other: &'static str) -> Control {
    let shared = Shared {
        stream: Arc::new(Mutex::new(stream)),
        other,
    };
    Control {
        reader: Box::new(Reader(shared.clone())),
        writer: Box::new(Writer(shared)),
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut *self.0.lock()).poll_read(cx, buf));
        self.0.words(result)
    }
}

impl ControlReader for Reader {}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut *self.0.lock()).poll_write(cx, buf));
        self.0.words(result)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut *self.0.lock()).poll_flush(cx));
        self.0.words(result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut *self.0.lock()).poll_shutdown(cx));
        self.0.words(result)
    }
}

impl ControlWriter for Writer {
    fn finish(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let ended = timeout(LAST_WORDS, async {
                if self.shutdown().await.is_ok() {
                    self.0.acknowledged().await;
                }
            });
            // Late or not: there is nothing more to be done for them.
            let _ = ended.await;
        })
    }
}
