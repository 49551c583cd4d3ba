//! Congestion control that steps aside when a connection is closed.
//!
//! quinn holds back even the packet that closes a connection while too much is in flight, and
//! never sends it if that does not change (its own acknowledgements no longer count then). The peer
//! would learn of the end only by silence. So the window opens for that last packet. Until then all
//! is left to CUBIC.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Whether a connection is being closed. Of one connection only.
#[derive(Clone, Debug, Default)]
pub(super) struct Closing(Arc<AtomicBool>);

impl Closing {
    /// From now on nothing is held back.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Makes the congestion control of one connection.
pub(super) struct Factory {
    cubic: Arc<CubicConfig>,
    closing: Closing,
}

impl Factory {
    pub(super) fn new(closing: Closing) -> Self {
        Self {
            cubic: Arc::default(),
            closing,
        }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(StepsAside {
            inner: self.cubic.clone().build(now, current_mtu),
            closing: self.closing.clone(),
        })
    }
}

struct StepsAside {
    inner: Box<dyn Controller>,
    closing: Closing,
}

impl Controller for StepsAside {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.closing.begun() {
            // So large that quinn does not pace either.
            u64::MAX
        } else {
            self.inner.window()
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            closing: self.closing.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}
