//! Page streams: parts go to QUIC as they are, without a copy.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, ReadBuf};

use super::control::{read_error, write_error};
use crate::pace::Pacer;
use crate::{PageReader, PageWriter, TransportError, explain};

#[derive(Debug)]
struct Writer {
    stream: SendStream,
    pacer: Arc<Pacer>,
}

#[derive(Debug)]
struct Reader {
    stream: RecvStream,
}

/// The sending end of a page stream.
pub(super) fn writer(stream: SendStream, pacer: Arc<Pacer>) -> Box<dyn PageWriter> {
    Box::new(Writer { stream, pacer })
}

/// The receiving end of a page stream.
pub(super) fn reader(stream: RecvStream) -> Box<dyn PageReader> {
    Box::new(Reader { stream })
}

impl PageWriter for Writer {
    fn send<'a>(&'a mut self, parts: &'a [Bytes]) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let mut chunks = Vec::with_capacity(parts.len());
            for part in parts {
                let mut rest = part.clone();
                while !rest.is_empty() {
                    if self.pacer.is_limited() && !chunks.is_empty() {
                        self.write(&mut chunks).await?;
                    }
                    let piece = self.pacer.take(rest.len()).await;
                    chunks.push(rest.split_to(piece));
                }
            }
            self.write(&mut chunks).await
        })
    }
}

impl Writer {
    /// Hands `chunks` over, leaving none.
    async fn write(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), TransportError> {
        let result = self.stream.write_all_chunks(chunks).await;
        chunks.clear();
        result.map_err(|e| {
            let error = write_error(e, "the destination");
            TransportError::Lost(explain::io(&error, "the destination"))
        })
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(self.stream.poll_read_buf(cx, buf));
        Poll::Ready(result.map_err(|e| read_error(e, "the source")))
    }
}

impl PageReader for Reader {}
