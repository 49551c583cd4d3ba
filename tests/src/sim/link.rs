//! The link between the two hosts: latency, bandwidth, and connections that can be cut.
//!
//! One control stream each way, in order, and page streams that share the bandwidth and may
//! overtake each other. What is on its way when a connection is cut never arrives.

use std::time::Duration;

use vmferry_protocol::ids::Time;

/// Which way a control message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the source.
    ToDestination,
    /// From the destination.
    ToSource,
}

impl Direction {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::ToDestination => 0,
            Self::ToSource => 1,
        }
    }
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// One way.
    pub latency: Duration,
    /// Bytes per second, each way.
    pub bandwidth: u64,
}

impl Link {
    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bandwidth.max(1))
    }
}

/// What a link is doing.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    link: Link,
    /// The connection that stands now; frames of others are dropped.
    pub(super) epoch: u64,
    pub(super) up: bool,
    /// When the last byte queued has left, by direction.
    free: [Time; 2],
    /// When the last control message arrives, by direction: they keep their order.
    last_control: [Time; 2],
    /// When the last frame of each page stream arrives.
    last_page: Vec<Time>,
}

impl Wire {
    pub(super) fn new(link: Link, streams: u16) -> Self {
        Self {
            link,
            epoch: 0,
            up: false,
            free: [Time::ZERO; 2],
            last_control: [Time::ZERO; 2],
            last_page: vec![Time::ZERO; usize::from(streams.max(1))],
        }
    }

    pub(super) fn connect(&mut self, now: Time) {
        self.epoch += 1;
        self.up = true;
        self.free = [now; 2];
        self.last_control = [now; 2];
        self.last_page.fill(now);
    }

    pub(super) fn cut(&mut self) {
        self.up = false;
    }

    pub(super) const fn latency(&self) -> Duration {
        self.link.latency
    }

    /// When a control message of `bytes` arrives. Small ones pass between page frames.
    pub(super) fn control(&mut self, now: Time, direction: Direction, bytes: u64) -> Time {
        let i = direction.index();
        let at = now + self.link.time_for(bytes) + self.link.latency;
        self.last_control[i] = at.max(self.last_control[i]);
        self.last_control[i]
    }

    /// When a frame of `bytes` on a page stream has left, and when it arrives. `jitter` delays
    /// this stream only.
    pub(super) fn page(
        &mut self,
        now: Time,
        stream: usize,
        bytes: u64,
        jitter: Duration,
    ) -> (Time, Time) {
        let left = now.max(self.free[0]) + self.link.time_for(bytes);
        self.free[0] = left;
        let n = self.last_page.len();
        let last = &mut self.last_page[stream % n];
        *last = (left + self.link.latency + jitter).max(*last);
        (left, *last)
    }
}
