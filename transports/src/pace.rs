//! The bandwidth limit of a connector's page streams, on the real clock.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::limit::{Bandwidth, Bucket};

/// A limit that several streams share.
#[derive(Debug)]
pub(crate) struct Pacer {
    start: Instant,
    piece: usize,
    bucket: Mutex<Bucket>,
}

impl Pacer {
    pub(crate) fn new(limit: Bandwidth) -> Self {
        let bucket = Bucket::new(limit);
        Self {
            start: Instant::now(),
            piece: usize::try_from(bucket.piece()).unwrap_or(usize::MAX),
            bucket: Mutex::new(bucket),
        }
    }

    /// Waits until some of `wanted` bytes may go; returns how many.
    pub(crate) async fn take(&self, wanted: usize) -> usize {
        let bytes = wanted.min(self.piece);
        let now = Instant::now();
        let wait = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(now.duration_since(self.start), bytes as u64);
        if wait > Duration::ZERO {
            sleep_until(now + wait).await;
        }
        bytes
    }
}

/// How many of `wanted` bytes go next: all, unless there is a limit.
pub(crate) async fn next(pacer: Option<&Pacer>, wanted: usize) -> usize {
    match pacer {
        Some(pacer) => pacer.take(wanted).await,
        None => wanted,
    }
}
