//! The bandwidth limit of a connector's page streams, on the real clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::limit::{Bandwidth, Bucket};

/// A limit that several streams share, or none. It may change while they send.
#[derive(Debug)]
pub(crate) struct Pacer {
    start: Instant,
    bucket: Mutex<Option<Bucket>>,
}

impl Pacer {
    pub(crate) fn new(limit: Option<Bandwidth>) -> Self {
        Self {
            start: Instant::now(),
            bucket: Mutex::new(limit.map(Bucket::new)),
        }
    }

    /// From the next piece on.
    pub(crate) fn set(&self, limit: Option<Bandwidth>) {
        *self.lock() = limit.map(Bucket::new);
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits until some of `wanted` bytes may go; returns how many: all, unless there is a limit.
    pub(crate) async fn take(&self, wanted: usize) -> usize {
        let now = Instant::now();
        let (bytes, wait) = match &mut *self.lock() {
            None => (wanted, Duration::ZERO),
            Some(bucket) => {
                let piece = usize::try_from(bucket.piece()).unwrap_or(usize::MAX);
                let bytes = wanted.min(piece);
                let at = now.duration_since(self.start);
                (bytes, bucket.take(at, bytes as u64))
            }
        };
        if wait > Duration::ZERO {
            sleep_until(now + wait).await;
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_from_when_it_is_set_until_it_is_taken_off() {
        let pacer = Pacer::new(None);
        assert_eq!(pacer.take(10 << 20).await, 10 << 20);
        assert!(!pacer.is_limited());
        // 1 MB/s.
        pacer.set(Bandwidth::from_mbit(8));
        let began = Instant::now();
        let mut gone = 0;
        while gone < 1_000_000 {
            gone += pacer.take(1_000_000 - gone).await;
        }
        let took = began.elapsed().as_secs_f64();
        assert!((0.9..1.001).contains(&took), "{took}");
        pacer.set(None);
        assert_eq!(pacer.take(10 << 20).await, 10 << 20);
        assert_eq!(began.elapsed().as_secs_f64(), took);
    }
}
