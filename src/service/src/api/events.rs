//! The event stream: Server-Sent Events.
//!
//! First a snapshot, then what happens. A reader that is too slow is told how much it has missed,
//! and let go: it connects again for a new snapshot. Nothing is kept for a reader but its place in
//! the host's queue, which is bounded.

use std::convert::Infallible;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};

use super::host::{Host, MAX_STREAMS};
use super::problem::Refusal;
use super::types::{Lagged, Snapshot, StreamFrame};
use crate::control::ControlError;
use crate::model::ServiceEvent;

/// A comment is sent when nothing has been for so long.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// All that happens, as Server-Sent Events. Each event's name is the `kind` of its data, a
/// `StreamEvent`: first `snapshot`, then `vm`, `vm-gone`, `migration`, `drain`; `lagged` is the
/// last for a reader that was too slow. Comments keep the connection alive.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub(super) async fn stream_events(host: Host) -> Result<HttpResponse, Refusal> {
    let Ok(place) = host.streams.clone().try_acquire_owned() else {
        return Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MAX_STREAMS} event streams are open, which is the most: close some"),
        ));
    };
    let (snapshot, events) = host
        .ask(|c| async move {
            // Events first: what happens meanwhile comes twice, not never.
            let events = c.events();
            let drain = match c.drain_state().await {
                Ok(drain) => Some(drain),
                Err(ControlError::NotFound(_)) => None,
                Err(e) => return Err(e),
            };
            let snapshot = Snapshot {
                vms: c.vms().await,
                migrations: c.migrations().await,
                drain,
            };
            Ok((snapshot, events))
        })
        .await?;
    let feed = Feed {
        first: Some(frame("snapshot", &StreamFrame::Snapshot(snapshot))),
        events,
        stop: host.stop.clone(),
        _place: place,
    };
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(feed.stream()))
}

/// Where a reader is.
struct Feed {
    first: Option<Bytes>,
    events: broadcast::Receiver<ServiceEvent>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            let (bytes, last) = feed.next().await?;
            Some((Ok(bytes), (!last).then_some(feed)))
        })
    }

    /// What is sent next, and whether it is the last.
    async fn next(&mut self) -> Option<(Bytes, bool)> {
        if let Some(first) = self.first.take() {
            return Some((first, false));
        }
        let happened = tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => return None,
            happened = tokio::time::timeout(KEEP_ALIVE, self.events.recv()) => happened,
        };
        match happened {
            Err(_) => Some((Bytes::from_static(b": still here\n\n"), false)),
            Ok(Ok(event)) => Some((frame(kind(&event), &event), false)),
            Ok(Err(broadcast::error::RecvError::Lagged(missed))) => Some((
                frame("lagged", &StreamFrame::Lagged(Lagged { missed })),
                true,
            )),
            Ok(Err(broadcast::error::RecvError::Closed)) => None,
        }
    }
}

const fn kind(event: &ServiceEvent) -> &'static str {
    match event {
        ServiceEvent::Vm(_) => "vm",
        ServiceEvent::VmGone(_) => "vm-gone",
        ServiceEvent::Migration(_) => "migration",
        ServiceEvent::Drain(_) => "drain",
    }
}

/// One event. JSON has no line breaks of its own, so that its data is one line.
fn frame(name: &str, data: &impl serde::Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use futures_util::StreamExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn feed(events: broadcast::Receiver<ServiceEvent>) -> (watch::Sender<bool>, Feed) {
        let (stopper, stop) = watch::channel(false);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let first = Some(Bytes::from_static(b"first"));
        let feed = Feed {
            first,
            events,
            stop,
            _place: place,
        };
        (stopper, feed)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let (_events, receiver) = broadcast::channel(4);
        let (_stopper, feed) = feed(receiver);
        let begun = tokio::time::Instant::now();
        let mut stream = pin!(feed.stream());
        assert_eq!(stream.next().await.unwrap().unwrap(), "first");
        for _ in 0..3 {
            assert_eq!(stream.next().await.unwrap().unwrap(), ": still here\n\n");
        }
        assert_eq!(begun.elapsed(), 3 * KEEP_ALIVE);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_let_go() {
        let (events, receiver) = broadcast::channel(2);
        let (_stopper, feed) = feed(receiver);
        for n in 0..5 {
            events
                .send(ServiceEvent::VmGone(format!("vm-{n}")))
                .unwrap();
        }
        let said: Vec<_> = feed.stream().map(Result::unwrap).collect().await;
        assert_eq!(said.len(), 2);
        assert_eq!(
            said[1],
            "event: lagged\ndata: {\"kind\":\"lagged\",\"value\":{\"missed\":3}}\n\n"
        );
    }

    #[tokio::test]
    async fn streams_end_with_the_server() {
        let (_events, receiver) = broadcast::channel(2);
        let (stopper, feed) = feed(receiver);
        stopper.send_replace(true);
        assert_eq!(feed.stream().count().await, 1);
    }
}
