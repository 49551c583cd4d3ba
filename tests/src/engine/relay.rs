//! A control stream with a script in between: two tasks that carry messages on, one each way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
    duplex, split,
};
use tokio::sync::{oneshot, watch};
use vmferry_protocol::message::Message;
use vmferry_protocol::wire::{FrameDecoder, encode};
use vmferry_transports::{Control, ControlReader, ControlWriter};

use super::faults::{Script, Step, Way};

/// What fits between a side and its relay, in bytes.
const PIPE: usize = 64 << 10;

/// What both tasks know.
#[derive(Clone, Debug)]
struct Shared {
    script: Arc<Script>,
    connection: usize,
    /// The connection is cut.
    cut: Arc<watch::Sender<bool>>,
    /// The near side has dropped its stream.
    gone: Arc<watch::Sender<bool>>,
    /// The far side has closed.
    closed: Arc<watch::Sender<bool>>,
    /// What goes out is lost: the far side does not even hear that the near side has gone.
    held: Arc<AtomicBool>,
    /// The near side has ended its stream in good order.
    finishing: Arc<AtomicBool>,
}

/// Ends the relay when both halves at the near side are gone.
#[derive(Debug)]
struct Alive(Shared);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.gone.send_replace(true);
    }
}

#[derive(Debug)]
struct Reader {
    pipe: ReadHalf<DuplexStream>,
    _alive: Arc<Alive>,
}

#[derive(Debug)]
struct Writer {
    pipe: WriteHalf<DuplexStream>,
    alive: Arc<Alive>,
    carried: oneshot::Receiver<()>,
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
        Box::pin(async move {
            self.alive.0.finishing.store(true, Ordering::SeqCst);
            let _ = self.pipe.shutdown().await;
            let _ = self.carried.await;
        })
    }
}

/// `inner`, the connection's `connection`-th, with the script in between.
pub(super) fn control(
    inner: Control,
    script: Arc<Script>,
    connection: usize,
    cut: Arc<watch::Sender<bool>>,
) -> Control {
    let shared = Shared {
        script,
        connection,
        cut,
        gone: Arc::default(),
        closed: Arc::default(),
        held: Arc::default(),
        finishing: Arc::default(),
    };
    let (near, far) = duplex(PIPE);
    let (from_near, to_near) = split(far);
    let (done, carried) = oneshot::channel();
    tokio::spawn(outward(shared.clone(), from_near, inner.writer, done));
    tokio::spawn(back(shared.clone(), inner.reader, to_near));
    let (reader, writer) = split(near);
    let alive = Arc::new(Alive(shared));
    Control {
        reader: Box::new(Reader {
            pipe: reader,
            _alive: alive.clone(),
        }),
        writer: Box::new(Writer {
            pipe: writer,
            alive,
            carried,
        }),
    }
}

async fn is(flag: &watch::Sender<bool>) {
    let _ = flag.subscribe().wait_for(|flag| *flag).await;
}

/// What becomes of the messages that have come whole; false where the connection is cut.
fn act(
    shared: &Shared,
    way: Way,
    decoder: &mut FrameDecoder,
    held: &mut bool,
    out: &mut Vec<u8>,
) -> bool {
    while let Ok(Some(message)) = decoder.next_message() {
        if *held {
            continue;
        }
        let frame = |message: &Message| encode(message).unwrap_or_default();
        match shared.script.message(shared.connection, way, &message) {
            Step::Pass => out.extend(frame(&message)),
            Step::Bytes(bytes) => out.extend(bytes),
            Step::Times(n) => (0..n).for_each(|_| out.extend(frame(&message))),
            Step::Hold => *held = true,
            Step::Cut => {
                // What was said before has left.
                return false;
            }
        }
    }
    true
}

async fn outward(
    shared: Shared,
    mut from: ReadHalf<DuplexStream>,
    mut to: Box<dyn ControlWriter>,
    done: oneshot::Sender<()>,
) {
    let (mut decoder, mut held, mut buffer) = (FrameDecoder::default(), false, vec![0; PIPE]);
    loop {
        let read = tokio::select! {
            biased;
            () = is(&shared.cut) => return,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if read == 0 {
            break;
        }
        decoder.feed(&buffer[..read]);
        let mut out = Vec::new();
        let goes_on = act(&shared, Way::Out, &mut decoder, &mut held, &mut out);
        shared.held.store(held, Ordering::SeqCst);
        let written = async {
            to.write_all(&out).await?;
            to.flush().await
        };
        tokio::select! {
            biased;
            () = is(&shared.cut) => return,
            // The reading half says why.
            _ = written => {}
            () = is(&shared.gone) => return,
        }
        if !goes_on {
            shared.cut.send_replace(true);
            return;
        }
    }
    if held {
        drop(done);
        tokio::select! {
            () = is(&shared.cut) => {}
            () = is(&shared.closed) => {}
        }
    } else if shared.finishing.load(Ordering::SeqCst) {
        tokio::select! {
            () = is(&shared.cut) => {}
            () = to.finish() => {}
        }
        drop(done);
    }
}

async fn back(shared: Shared, mut from: Box<dyn ControlReader>, mut to: WriteHalf<DuplexStream>) {
    let (mut decoder, mut held, mut buffer) = (FrameDecoder::default(), false, vec![0; PIPE]);
    loop {
        let over = async {
            is(&shared.gone).await;
            // Nobody is told: the far side has to find out by itself.
            if shared.held.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        };
        let read = tokio::select! {
            biased;
            () = is(&shared.cut) => break,
            () = over => break,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if read == 0 {
            break;
        }
        decoder.feed(&buffer[..read]);
        let mut out = Vec::new();
        let goes_on = act(&shared, Way::Back, &mut decoder, &mut held, &mut out);
        tokio::select! {
            biased;
            () = is(&shared.cut) => break,
            _ = to.write_all(&out) => {}
            () = is(&shared.gone) => {}
        }
        if !goes_on {
            shared.cut.send_replace(true);
            break;
        }
    }
    shared.closed.send_replace(true);
    if !held || *shared.cut.borrow() {
        let _ = to.shutdown().await;
    } else {
        // Held: the near side does not hear of the end either.
        is(&shared.gone).await;
    }
}
