//! The event stream, as a client reads it.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::connect::Target;
use super::error::{ClientError, chain};
use crate::api::KEEP_ALIVE;
use crate::api::types::{StreamEvent, StreamFrame};
use crate::model::ServiceEvent;

/// Most bytes of one event: a snapshot of a host with very many migrations.
const MAX_EVENT: usize = 64 << 20;

/// What happens on a host: first a snapshot, then changes; a reader that is too slow gets
/// [`StreamFrame::Lagged`], and the end.
pub struct EventStream {
    target: Target,
    body: Incoming,
    parser: Parser,
    over: bool,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(target: Target, body: Incoming) -> Self {
        Self {
            target,
            body,
            parser: Parser::default(),
            over: false,
        }
    }

    /// The next event; none at the end. Events of kinds that this version does not know are left
    /// out. May be dropped and called again.
    ///
    /// # Errors
    /// [`ClientError`]: nothing was heard for four times the time between two comments, the
    /// connection broke, or what came is no event. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ClientError>> {
        while !self.over {
            match self.parser.next() {
                Some(Ok(event)) => return Some(Ok(event)),
                Some(Err(why)) => return self.end(Some(self.target.strange(why))),
                None => {}
            }
            let silence = KEEP_ALIVE * 4;
            match tokio::time::timeout(silence, self.body.frame()).await {
                Err(_) => return self.end(Some(self.target.silent(silence))),
                Ok(None) => return self.end(None),
                Ok(Some(Err(e))) => return self.end(Some(self.target.failed(chain(&e)))),
                Ok(Some(Ok(frame))) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.parser.push(bytes);
                    }
                }
            }
        }
        None
    }

    fn end(&mut self, error: Option<ClientError>) -> Option<Result<StreamEvent, ClientError>> {
        self.over = true;
        error.map(Err)
    }
}

/// Takes an event stream apart.
#[derive(Default)]
struct Parser {
    bytes: Vec<u8>,
    /// So many of them hold no line's end.
    seen: usize,
    /// So many of them have been taken apart.
    done: usize,
    name: String,
    data: String,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.done);
        self.seen -= self.done;
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next event that is there as a whole.
    fn next(&mut self) -> Option<Result<StreamEvent, String>> {
        while let Some(line) = self.line() {
            let line = match line {
                Ok(line) => line,
                Err(why) => return Some(Err(why)),
            };
            if line.is_empty() {
                let (name, data) = (
                    std::mem::take(&mut self.name),
                    std::mem::take(&mut self.data),
                );
                match event(&name, &data) {
                    Ok(Some(event)) => return Some(Ok(event)),
                    Ok(None) => {}
                    Err(e) => return Some(Err(format!("event {name:?}: {e}"))),
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.name),
                "data" => {
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                }
                _ => {}
            }
        }
        let held = self.bytes.len() - self.done + self.data.len();
        (held > MAX_EVENT).then(|| Err(format!("an event has more than {MAX_EVENT} bytes")))
    }

    /// The next line that is there as a whole, without its end.
    fn line(&mut self) -> Option<Result<String, String>> {
        let rest = self.bytes.get(self.seen..)?;
        let Some(length) = rest.iter().position(|&b| b == b'\n') else {
            self.seen = self.bytes.len();
            return None;
        };
        let end = self.seen + length;
        let line = self.bytes.get(self.done..end)?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = String::from_utf8(line.to_vec()).map_err(|_| "it is no UTF-8".to_owned());
        self.done = end + 1;
        self.seen = self.done;
        Some(line)
    }
}

/// An event by its name; none if the name is not known.
fn event(name: &str, data: &str) -> Result<Option<StreamEvent>, serde_json::Error> {
    match name {
        "snapshot" | "lagged" => {
            let frame: StreamFrame = serde_json::from_str(data)?;
            Ok(Some(StreamEvent::Frame(frame)))
        }
        "vm" | "vm-gone" | "migration" | "drain" => {
            let change: ServiceEvent = serde_json::from_str(data)?;
            Ok(Some(StreamEvent::Change(change)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nevent: later-version\ndata: {}\n\n\
        event: vm-gone\r\ndata: {\"kind\":\"vm-gone\",\r\ndata: \"value\":\"é\"}\r\nid: 7\r\n\r\n\
        event: lagged\ndata:{\"kind\":\"lagged\",\"value\":{\"missed\":3}}\n\nevent: vm\ndata: {";

    #[test]
    fn a_stream_can_be_cut_anywhere() {
        let whole = STREAM.as_bytes();
        for piece in 1..whole.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for bytes in whole.chunks(piece) {
                parser.push(bytes);
                while let Some(event) = parser.next() {
                    events.push(event.unwrap());
                }
            }
            let gone = StreamEvent::Change(ServiceEvent::VmGone("é".to_owned()));
            assert_eq!(events.len(), 2, "in pieces of {piece}");
            assert_eq!(events[0], gone);
            assert!(
                matches!(&events[1], StreamEvent::Frame(StreamFrame::Lagged(l)) if l.missed == 3)
            );
        }
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        for bytes in [&b"event: vm\ndata: {}\n\n"[..], b"data: \xff\n\n"] {
            let mut parser = Parser::default();
            parser.push(bytes);
            assert!(parser.next().unwrap().is_err());
        }
    }
}
