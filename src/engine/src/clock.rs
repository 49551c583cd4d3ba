//! The core's time: since the migration began. The only clock of the engine.

use std::time::Instant;

use vmferry_machine::workload::monotonic_ns;
use vmferry_protocol::ids::Time;

/// Time since a migration began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    began_ns: u64,
}

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self {
            began: Instant::now(),
            began_ns: monotonic_ns(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.began.elapsed()
    }

    /// The moment `time` in nanoseconds of CLOCK_MONOTONIC, which is the guest's heartbeats' too.
    pub(crate) fn at_ns(&self, time: Time) -> u64 {
        self.began_ns + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
    }
}
