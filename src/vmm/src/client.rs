//! A client of a VM process's control socket.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::api::{Answer, Call, Event, Line, Request};

/// How long an answer may take. What takes longer is told by events.
const CALL_WITHIN: Duration = Duration::from_secs(120);

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
    /// It does not answer; what was asked may yet be done.
    #[error("no answer of the VM process in {0:?}")]
    Silent(Duration),
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

type Answers = HashMap<u64, oneshot::Sender<Result<Answer, String>>>;
/// Who waits for which answer; none once no answer will come any more.
type Waiting = Arc<Mutex<Option<Answers>>>;

/// A connection to one VM process. Several calls may be under way at once; events arrive meanwhile.
/// A call that nobody waits for any more is carried out all the same.
#[derive(Debug)]
pub struct VmmClient {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Waiting,
    next_id: AtomicU64,
    pid: Option<u32>,
    reader: tokio::task::JoinHandle<()>,
    writer: tokio::task::JoinHandle<()>,
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
        let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let (read, write) = stream.into_split();
        let (lines, to_write) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_lines(write, to_write));
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_lines(read, waiting.clone(), events));
        let client = Self {
            lines,
            waiting,
            next_id: AtomicU64::new(1),
            pid: pid.and_then(|pid| u32::try_from(pid).ok()),
            reader,
            writer,
        };
        Ok((client, receiver))
    }

    /// The process at the other end, where the kernel says which.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the process's own words, [`ClientError::Gone`],
    /// [`ClientError::Silent`].
    pub async fn call(&self, request: Request) -> Result<Answer, ClientError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Call { id, request })?;
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        match &mut *lock(&self.waiting) {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(ClientError::Gone),
        };
        if self.lines.send(line).is_err() {
            return Err(ClientError::Gone);
        }
        match timeout(CALL_WITHIN, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(message))) => Err(ClientError::Refused(message)),
            Ok(Err(_)) => Err(ClientError::Gone),
            Err(_) => Err(ClientError::Silent(CALL_WITHIN)),
        }
    }
}

impl Drop for VmmClient {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

/// By a task of its own, so that no line is cut short where a caller does not wait.
async fn write_lines(mut write: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(waiting: &Waiting, id: u64) -> Option<oneshot::Sender<Result<Answer, String>>> {
    lock(waiting).as_mut()?.remove(&id)
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
                if let Some(sender) = take(&waiting, id) {
                    let _ = sender.send(Ok(answer));
                }
            }
            Ok(Line::Error { id, message }) => {
                if let Some(sender) = take(&waiting, id) {
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
    *lock(&waiting) = None;
}
