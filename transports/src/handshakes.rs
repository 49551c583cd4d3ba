//! Handshakes with peers that nobody knows yet: many at once, each for a bounded time.
//!
//! A peer that is slow, silent or hostile costs one of a bounded number of places. When all are
//! taken, the peer that has had its place longest is turned away, if it has had it for a while: an
//! honest one is through in milliseconds.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::warn;

/// Handshakes at the same time.
const MOST: usize = 64;
/// How long one may take.
const LONGEST: Duration = Duration::from_secs(10);
/// After this long, a handshake gives way to others if all places are taken.
const GIVES_WAY: Duration = Duration::from_secs(1);

/// Handshakes in progress that end in a `T`, or in words why not.
pub(crate) struct Handshakes<T> {
    transport: &'static str,
    running: JoinSet<(SocketAddr, Result<T, String>)>,
    oldest: VecDeque<Place>,
}

struct Place {
    peer: SocketAddr,
    since: Instant,
    task: AbortHandle,
}

impl<T: Send + 'static> Handshakes<T> {
    pub(crate) fn new(transport: &'static str) -> Self {
        Self {
            transport,
            running: JoinSet::new(),
            oldest: VecDeque::new(),
        }
    }

    /// Makes room for one more, if need be at the cost of the oldest. Else says when that may be.
    pub(crate) fn room(&mut self) -> Result<(), Instant> {
        self.oldest.retain(|place| !place.task.is_finished());
        if self.oldest.len() < MOST {
            return Ok(());
        }
        let Some(oldest) = self.oldest.front() else {
            return Ok(());
        };
        let gives_way = oldest.since + GIVES_WAY;
        if Instant::now() < gives_way {
            return Err(gives_way);
        }
        oldest.task.abort();
        warn!(
            transport = self.transport,
            peer = %oldest.peer,
            "peer turned away: it is slow and others wait"
        );
        self.oldest.pop_front();
        Ok(())
    }

    /// Whether so many are in progress that strangers should prove their address first.
    pub(crate) fn busy(&self) -> bool {
        self.oldest.len() >= MOST / 2
    }

    /// Starts one.
    pub(crate) fn start(
        &mut self,
        peer: SocketAddr,
        handshake: impl Future<Output = Result<T, String>> + Send + 'static,
    ) {
        let task = self.running.spawn(async move {
            let outcome = match timeout(LONGEST, handshake).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no handshake within {} s", LONGEST.as_secs())),
            };
            (peer, outcome)
        });
        self.oldest.push_back(Place {
            peer,
            since: Instant::now(),
            task,
        });
    }

    /// The next that is done; never, while there is none. Those that failed are logged and passed
    /// over. Safe to drop halfway.
    pub(crate) async fn done(&mut self) -> (SocketAddr, T) {
        loop {
            match self.running.join_next().await {
                Some(Ok((peer, Ok(done)))) => return (peer, done),
                Some(Ok((peer, Err(why)))) => {
                    warn!(transport = self.transport, %peer, "peer turned away: {why}");
                }
                // Turned away, and logged when that was done.
                Some(Err(e)) if e.is_cancelled() => {}
                Some(Err(e)) => {
                    warn!(transport = self.transport, "a handshake broke down: {e}");
                }
                None => std::future::pending().await,
            }
        }
    }
}

impl<T> fmt::Debug for Handshakes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshakes")
            .field("transport", &self.transport)
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}
