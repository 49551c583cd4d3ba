//! A control connection in use: one task that reads messages, one that writes them.
//!
//! Knows the wire format, and nothing of what is said. Both sides use it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use vmferry_protocol::message::Message;
use vmferry_protocol::wire::{FrameDecoder, encode};
use vmferry_transports::{Control, ControlReader, ControlWriter};

/// What a line tells its owner.
#[derive(Debug)]
pub(crate) enum FromLine {
    /// The peer has said something.
    Heard(Message),
    /// There is no connection any more, or it makes no sense.
    Lost(String),
}

/// How the owner is told. Resolves when there is room for more, so that a peer that says much
/// waits for this side.
pub(crate) trait Ear: Clone + Send + Sync + 'static {
    /// Takes one event of the line numbered by the owner.
    fn tell(&self, what: FromLine) -> impl Future<Output = ()> + Send;
}

/// A control connection. Dropped, it is cut; [`Line::close`] lets the last words arrive.
#[derive(Debug)]
pub(crate) struct Line {
    out: mpsc::Sender<Vec<u8>>,
    /// The peer reads less than it makes this side say.
    full: Arc<Notify>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// When one stream of a connection breaks, its control stream may have more to say about it: the
/// peer's reason may be there already, and not yet read.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(250);
/// Messages that may wait for a peer that does not read: far more than a window of chunks has.
const UNREAD: usize = 16 << 10;
/// How long the last words may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
const READ_SIZE: usize = 64 << 10;

impl Line {
    /// Begins to use `control`, of which `decoder` may have read some already.
    pub(crate) fn start(control: Control, decoder: FrameDecoder, ear: impl Ear) -> Self {
        let (out, messages) = mpsc::channel(UNREAD);
        let full = Arc::new(Notify::new());
        Self {
            out,
            reader: tokio::spawn(read(control.reader, decoder, ear.clone())),
            writer: tokio::spawn(write(control.writer, messages, full.clone(), ear)),
            full,
        }
    }

    /// Sends a message, after those before it.
    pub(crate) fn say(&self, message: &Message) {
        match encode(message) {
            // The writer tells of what it cannot write.
            Ok(frame) => {
                if let Err(mpsc::error::TrySendError::Full(_)) = self.out.try_send(frame) {
                    self.full.notify_one();
                }
            }
            Err(error) => tracing::error!(%error, message = message.name(), "not sent"),
        }
    }

    /// Ends the line when the peer has everything, or has had time for it.
    pub(crate) async fn close(mut self) {
        let (nobody, _) = mpsc::channel(1);
        // The writer ends when the last sender goes.
        drop(std::mem::replace(&mut self.out, nobody));
        let _ = tokio::time::timeout(CLOSE_WITHIN, &mut self.writer).await;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn read(mut reader: Box<dyn ControlReader>, mut decoder: FrameDecoder, ear: impl Ear) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match next(&mut reader, &mut decoder, &mut buffer).await {
            Ok(message) => ear.tell(FromLine::Heard(message)).await,
            Err(detail) => return ear.tell(FromLine::Lost(detail)).await,
        }
    }
}

/// The next message of a control stream.
pub(crate) async fn next(
    reader: &mut Box<dyn ControlReader>,
    decoder: &mut FrameDecoder,
    buffer: &mut [u8],
) -> Result<Message, String> {
    loop {
        match decoder.next_message() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(error) => return Err(format!("the peer sends nonsense: {error}")),
        }
        match reader.read(buffer).await {
            Ok(0) => return Err("the peer closed the connection".to_owned()),
            Ok(n) => decoder.feed(&buffer[..n]),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn write(
    mut writer: Box<dyn ControlWriter>,
    mut messages: mpsc::Receiver<Vec<u8>>,
    full: Arc<Notify>,
    ear: impl Ear,
) {
    while let Some(frame) = messages.recv().await {
        let sent = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        let why = tokio::select! {
            sent = sent => match sent {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            },
            () = full.notified() => "the peer does not read what it is told".to_owned(),
        };
        // The reading half knows better, if it has anything; and nobody asks while closing.
        let unsaid = async { while messages.recv().await.is_some() {} };
        if tokio::time::timeout(A_MOMENT, unsaid).await.is_err() {
            ear.tell(FromLine::Lost(why)).await;
        }
        return;
    }
    writer.finish().await;
}
