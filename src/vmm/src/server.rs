//! The control socket's server: lines in, lines out. What the requests mean is [`crate::vm`]'s.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::api::{Answer, Call, Event, Line, MAX_LINE, Request};

/// A request on its way to the one who carries it out.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What is asked.
    pub(crate) request: Request,
    /// Where the answer goes: an error is a message for people.
    pub(crate) answer: oneshot::Sender<Result<Answer, String>>,
}

/// What of a request is read where the rest makes no sense.
#[derive(Debug, Deserialize)]
struct Numbered {
    id: u64,
}

/// Binds the control socket, readable and writable by its owner only.
///
/// # Errors
/// The error of binding.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections until the receiver of `asked` is gone.
pub(crate) async fn serve(
    listener: UnixListener,
    asked: mpsc::Sender<Asked>,
    events: broadcast::Sender<Event>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = asked.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, asked.clone(), events.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket could not accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Lines that a client may leave unread before events wait for it, and are missed in the end.
const LINES_WAITING: usize = 256;

async fn connection(
    stream: UnixStream,
    asked: mpsc::Sender<Asked>,
    events: broadcast::Sender<Event>,
) {
    let (read, mut write) = stream.into_split();
    let (lines, mut to_write) = mpsc::channel::<Line>(LINES_WAITING);
    let writer = tokio::spawn(async move {
        while let Some(line) = to_write.recv().await {
            let Ok(mut bytes) = serde_json::to_vec(&line) else {
                continue;
            };
            bytes.push(b'\n');
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut forwarder = None;
    let mut reader = BufReader::new(read);
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let mut limited = (&mut reader).take(MAX_LINE as u64 + 1);
        match limited.read_until(b'\n', &mut buffer).await {
            Ok(n) if n > 0 && n <= MAX_LINE => {}
            _ => break,
        }
        let call: Call = match serde_json::from_slice(&buffer) {
            Ok(call) => call,
            Err(error) => {
                let message = format!("not a request: {error}");
                // Whoever waits for an answer to that number is to have one.
                let id =
                    serde_json::from_slice(&buffer).map_or(0, |numbered: Numbered| numbered.id);
                let _ = lines.send(Line::Error { id, message }).await;
                continue;
            }
        };
        if matches!(call.request, Request::Subscribe) {
            forwarder
                .get_or_insert_with(|| tokio::spawn(forward(events.subscribe(), lines.clone())));
            let answer = Answer::Done;
            let id = call.id;
            let _ = lines.send(Line::Answer { id, answer }).await;
            continue;
        }
        let (answer, answered) = oneshot::channel();
        let request = call.request;
        if asked.send(Asked { request, answer }).await.is_err() {
            break;
        }
        let lines = lines.clone();
        // A long request must not keep the next one (a cancel) from being read.
        tokio::spawn(async move {
            let line = match answered.await {
                Ok(Ok(answer)) => Line::Answer {
                    id: call.id,
                    answer,
                },
                Ok(Err(message)) => Line::Error {
                    id: call.id,
                    message,
                },
                Err(_) => Line::Error {
                    id: call.id,
                    message: "the VM process is ending".to_owned(),
                },
            };
            let _ = lines.send(line).await;
        });
    }
    if let Some(task) = forwarder {
        task.abort();
    }
    drop(lines);
    let _ = writer.await;
}

async fn forward(mut events: broadcast::Receiver<Event>, lines: mpsc::Sender<Line>) {
    loop {
        match events.recv().await {
            Ok(event) => {
                if lines.send(Line::Event(event)).await.is_err() {
                    return;
                }
            }
            // A slow reader misses events rather than holding anybody up.
            Err(broadcast::error::RecvError::Lagged(n)) => {
                tracing::warn!(missed = n, "a subscriber is too slow");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
