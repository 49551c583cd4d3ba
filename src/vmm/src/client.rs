//! A client of a VM process's control socket.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

use crate::api::{Answer, Call, Event, Line, Request};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket cannot be reached.
    #[error("cannot reach the VM process at {path}")]
    Connect {
        /// The socket.
        path: String,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The process is gone.
    #[error("the VM process has gone away")]
    Gone,
    /// The process refused.
    #[error("{0}")]
    Refused(String),
    /// A request that cannot be written as JSON.
    #[error("cannot write the request")]
    Encode(#[from] serde_json::Error),
    /// Not the answer that belongs to the request.
    #[error("the VM process gave an answer of another kind: {0}")]
    Unexpected(String),
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Answer, String>>>>>;

/// A connection to one VM process. Calls may be made one after the other; events arrive meanwhile.
#[derive(Debug)]
pub struct VmmClient {
    writer: OwnedWriteHalf,
    waiting: Waiting,
    next_id: u64,
    reader: tokio::task::JoinHandle<()>,
}

impl VmmClient {
    /// Connects; events come out of the receiver once [`Request::Subscribe`] was called. It ends
    /// when the process goes.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(
        path: &Path,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), ClientError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| ClientError::Connect {
                path: path.display().to_string(),
                source,
            })?;
        let (read, writer) = stream.into_split();
        let waiting: Waiting = Arc::default();
        let (events, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_lines(read, waiting.clone(), events));
        let client = Self {
            writer,
            waiting,
            next_id: 1,
            reader,
        };
        Ok((client, receiver))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the process's own words, [`ClientError::Gone`].
    pub async fn call(&mut self, request: Request) -> Result<Answer, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Call { id, request })?;
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        if self.reader.is_finished() || self.writer.write_all(&line).await.is_err() {
            return Err(ClientError::Gone);
        }
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(message)) => Err(ClientError::Refused(message)),
            Err(_) => Err(ClientError::Gone),
        }
    }
}

impl Drop for VmmClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_lines(
    read: tokio::net::unix::OwnedReadHalf,
    waiting: Waiting,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Line::Answer { id, answer }) => {
                if let Some(sender) = lock(&waiting).remove(&id) {
                    let _ = sender.send(Ok(answer));
                }
            }
            Ok(Line::Error { id, message }) => {
                if let Some(sender) = lock(&waiting).remove(&id) {
                    let _ = sender.send(Err(message));
                }
            }
            Ok(Line::Event(event)) => {
                let _ = events.send(event);
            }
            Err(error) => tracing::warn!(%error, "a line of the VM process is not understood"),
        }
    }
    // Whoever still waits learns that nothing will come.
    lock(&waiting).clear();
}
