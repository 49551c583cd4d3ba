//! Page streams: many parts in few, large TLS records.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::Stream;
use crate::pace::Pacer;
use crate::{PageReader, PageWriter, TransportError, explain};

/// What TLS may hold encrypted, in bytes: as much goes into one system call.
const WRITE_BUFFER: usize = 128 << 10;

#[derive(Debug)]
struct Writer {
    stream: Stream,
    pacer: Arc<Pacer>,
}

#[derive(Debug)]
struct Reader {
    stream: Stream,
}

/// The sending end of a page stream.
pub(super) fn writer(mut stream: Stream, pacer: Arc<Pacer>) -> Box<dyn PageWriter> {
    if let tokio_rustls::TlsStream::Client(stream) = &mut stream {
        stream.get_mut().1.set_buffer_limit(Some(WRITE_BUFFER));
    }
    Box::new(Writer { stream, pacer })
}

/// The receiving end of a page stream.
pub(super) fn reader(stream: Stream) -> Box<dyn PageReader> {
    Box::new(Reader { stream })
}

impl PageWriter for Writer {
    fn send<'a>(&'a mut self, parts: &'a [Bytes]) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            self.write(parts)
                .await
                .map_err(|e| TransportError::Lost(explain::io(&e, "the destination")))
        })
    }
}

impl Writer {
    async fn write(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let total = parts.iter().map(Bytes::len).sum();
        let mut done = 0;
        while done < total {
            let end = done + self.pacer.take(total - done).await;
            while done < end {
                let slices = window(parts, done, end - done);
                match self.stream.write_vectored(&slices).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => done += n,
                }
            }
        }
        self.stream.flush().await
    }
}

/// `len` bytes of `parts` from `from` on.
fn window(parts: &[Bytes], mut from: usize, mut len: usize) -> Vec<IoSlice<'_>> {
    let mut slices = Vec::with_capacity(parts.len());
    for part in parts {
        if from >= part.len() {
            from -= part.len();
            continue;
        }
        let n = len.min(part.len() - from);
        if n == 0 {
            break;
        }
        slices.push(IoSlice::new(&part[from..from + n]));
        len -= n;
        from = 0;
    }
    slices
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            // The sender just drops its end. That cuts nothing off unnoticed: whether a frame is
            // whole shows in the frame, and whether all have come is told by the control stream.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            result => Poll::Ready(result.map_err(|e| explain::stream(e, "the source"))),
        }
    }
}

impl PageReader for Reader {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_the_bytes_asked_for() {
        let parts: Vec<Bytes> = ["", "abc", "", "d", "efgh"].map(Bytes::from).to_vec();
        let all = parts.concat();
        for from in 0..=all.len() {
            for len in 0..=all.len() - from {
                let slices = window(&parts, from, len);
                let joined: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                assert_eq!(joined, &all[from..from + len]);
                assert!(slices.iter().all(|s| !s.is_empty()));
            }
        }
    }
}
