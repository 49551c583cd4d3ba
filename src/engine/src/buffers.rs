//! Buffers for chunks, used again and again: a fresh one each time would be page faults each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// A pool of buffers. As many exist as were ever in use at once, which the source's window bounds.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer on loan.
#[derive(Debug)]
struct Lent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.free().push(bytes);
    }
}

impl Buffers {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer of at least `capacity` bytes.
    #[must_use]
    pub fn take(&self, capacity: usize) -> Vec<u8> {
        let mut bytes = self.free().pop().unwrap_or_default();
        bytes.reserve(capacity);
        bytes
    }

    /// The content of a buffer as shared bytes; the buffer comes back when the last is dropped.
    #[must_use]
    pub fn share(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent {
            bytes,
            home: self.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_dropped() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1000);
        first.extend_from_slice(b"pages");
        let at = first.as_ptr();
        let shared = buffers.share(first);
        let part = shared.slice(1..3);
        drop(shared);
        assert_eq!(&part[..], b"ag");
        let other = buffers.take(10);
        assert_ne!(other.as_ptr(), at);
        drop(part);
        let again = buffers.take(10);
        assert!(again.is_empty() && again.as_ptr() == at);
    }
}
