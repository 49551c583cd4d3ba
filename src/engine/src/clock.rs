//! The core's time: since the migration began. The only clock of the engine.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vmferry_machine::workload::monotonic_ns;
use vmferry_protocol::ids::Time;

/// Time since a migration began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    began_ns: u64,
    began_unix_us: u64,
}

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self {
            began: Instant::now(),
            began_ns: monotonic_ns(),
            began_unix_us: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0)),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.began.elapsed()
    }

    /// When it began, in microseconds since 1970, UTC. Later moments are reckoned from it, however
    /// the host's clock is set meanwhile.
    pub(crate) fn began_unix_us(&self) -> u64 {
        self.began_unix_us
    }

    /// The moment `time` in nanoseconds of CLOCK_MONOTONIC, which is the guest's heartbeats' too.
    pub(crate) fn at_ns(&self, time: Time) -> u64 {
        self.began_ns + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
    }
}
