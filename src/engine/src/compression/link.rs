//! Between compressors and page streams: what waits for the link, and how fast it takes it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_codecs::selector::LinkMeter;
use vmferry_protocol::wire::MAX_ENCODED;

use crate::clock::Clock;

/// Compressors run ahead of the link by what it carries in this time: later is better, as pages
/// are younger and the link better known, and this much keeps all streams busy.
const AHEAD: Duration = Duration::from_millis(20);
/// But by a chunk for each stream and some more at least, and so much at most.
const MORE_CHUNKS: u64 = 2;
const CHUNK: u64 = MAX_ENCODED as u64;
const AT_MOST: u64 = 8 << 20;

/// The link as compressors and streams see it.
#[derive(Debug)]
pub struct Link {
    clock: Clock,
    at_least: u64,
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    meter: LinkMeter,
    queued: u64,
    closed: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self::new(1, Clock::start())
    }
}

impl Link {
    /// Of so many page streams; its times are `clock`'s.
    #[must_use]
    pub(crate) fn new(streams: u16, clock: Clock) -> Self {
        Self {
            clock,
            at_least: ((u64::from(streams) + MORE_CHUNKS) * CHUNK).min(AT_MOST),
            state: Mutex::default(),
            room: Condvar::new(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The time, bytes per second where that is known, and how full the queue is, 0 to 1.
    pub(crate) fn state(&self) -> (Duration, Option<f64>, f64) {
        let state = self.lock();
        let now = self.now();
        let fill = state.queued as f64 / self.limit(&state, now) as f64;
        (now, state.meter.bytes_per_second(now), fill.min(1.0))
    }

    /// For a compressor: waits while enough is queued.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.lock();
        while !state.closed && state.queued >= self.limit(&state, self.now()) {
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A compressor has made a frame of so many bytes.
    pub(crate) fn queue(&self, bytes: u64) {
        self.lock().queued += bytes;
    }

    /// A stream begins to send a frame.
    pub(crate) fn begin(&self, bytes: u64) {
        let now = self.now();
        self.lock().meter.begin(now, bytes);
    }

    /// It has taken it.
    pub(crate) fn end(&self, bytes: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.meter.end(now, bytes);
        state.queued = state.queued.saturating_sub(bytes);
        self.room.notify_all();
    }

    /// Nothing will be sent any more: nobody waits.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }

    /// Bytes that may be queued: few before anything is known of the link, so that the queue soon
    /// says whether it is slow.
    fn limit(&self, state: &State, now: Duration) -> u64 {
        let ahead = |rate: f64| (rate * AHEAD.as_secs_f64()) as u64;
        let rate = state.meter.bytes_per_second(now);
        rate.map_or(self.at_least, ahead)
            .clamp(self.at_least, AT_MOST)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_compressor_waits_until_a_stream_has_taken_something() {
        let link = Arc::new(Link::default());
        link.queue(AT_MOST);
        let other = link.clone();
        let waits = std::thread::spawn(move || {
            other.wait_for_room();
            other.state().2
        });
        link.begin(AT_MOST);
        link.end(AT_MOST);
        assert!(waits.join().unwrap() < 1e-9);
        assert!(link.state().1.is_some());
    }

    #[test]
    fn nobody_waits_for_a_link_that_is_closed() {
        let link = Link::default();
        link.queue(AT_MOST);
        link.close();
        link.wait_for_room();
        assert!(link.state().2 > 0.99);
    }
}
