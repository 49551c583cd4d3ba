//! What is still to be sent, what is on its way, and that nothing is forgotten in between.
//!
//! A page leaves the set only when the destination has acknowledged the chunk it travelled in.

use std::collections::BTreeMap;

use crate::ids::ChunkId;
use crate::pages::{Cursor, PageRange, PageSet, RamLayout};

/// A piece of a pass, small enough to be read, encoded and sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its number.
    pub id: ChunkId,
    /// The pass.
    pub pass: u32,
    /// Its pages, ascending, within one RAM region.
    pub ranges: Vec<PageRange>,
}

impl Chunk {
    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|r| r.count).sum()
    }
}

/// An acknowledgement of a chunk that is not on its way.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownChunk(pub ChunkId);

/// The pages of a pass: to be sent, or on their way.
#[derive(Clone, Debug)]
pub struct PendingSet {
    to_send: PageSet,
    cursor: Cursor,
    in_flight: BTreeMap<ChunkId, Vec<PageRange>>,
    in_flight_pages: u64,
    next_id: u64,
}

impl PendingSet {
    /// Nothing pending.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        Self {
            to_send: PageSet::new(layout),
            cursor: Cursor::default(),
            in_flight: BTreeMap::new(),
            in_flight_pages: 0,
            next_id: 1,
        }
    }

    /// Adds what a harvest has found, and begins the sweep anew.
    pub fn add(&mut self, dirty: &PageSet) {
        self.to_send.union(dirty);
        self.cursor = Cursor::default();
    }

    /// The next chunk of at most `max_pages` pages in at most `max_ranges` runs.
    pub fn next_chunk(&mut self, pass: u32, max_pages: u64, max_ranges: usize) -> Option<Chunk> {
        let ranges = self.to_send.take(&mut self.cursor, max_pages, max_ranges)?;
        let id = ChunkId(self.next_id);
        self.next_id += 1;
        self.in_flight_pages += ranges.iter().map(|r| r.count).sum::<u64>();
        self.in_flight.insert(id, ranges.clone());
        Some(Chunk { id, pass, ranges })
    }

    /// The destination has the chunk.
    ///
    /// # Errors
    /// [`UnknownChunk`] if it was never sent or was acknowledged before.
    pub fn acknowledge(&mut self, id: ChunkId) -> Result<u64, UnknownChunk> {
        let ranges = self.in_flight.remove(&id).ok_or(UnknownChunk(id))?;
        let pages = ranges.iter().map(|r| r.count).sum();
        self.in_flight_pages -= pages;
        Ok(pages)
    }

    /// Everything on its way is to be sent again.
    pub fn put_back(&mut self) {
        for ranges in std::mem::take(&mut self.in_flight).into_values() {
            for range in ranges {
                self.to_send.insert(range);
            }
        }
        self.in_flight_pages = 0;
        self.cursor = Cursor::default();
    }

    /// The pages of a chunk that is on its way; none where it is not.
    #[must_use]
    pub fn in_flight(&self, id: ChunkId) -> &[PageRange] {
        self.in_flight.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Pages not yet acknowledged.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.to_send.len() + self.in_flight_pages
    }

    /// Pages on their way.
    #[must_use]
    pub fn in_flight_pages(&self) -> u64 {
        self.in_flight_pages
    }

    /// Chunks handed out since the start.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.next_id - 1
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to_send.is_empty() && self.in_flight.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_leaves_only_when_it_is_acknowledged() {
        let layout = RamLayout::try_from(vec![PageRange::new(0, 256)]).unwrap();
        let mut dirty = PageSet::new(&layout);
        dirty.insert(PageRange::new(10, 100));
        let mut pending = PendingSet::new(&layout);
        pending.add(&dirty);
        let first = pending.next_chunk(1, 64, 64).unwrap();
        let second = pending.next_chunk(1, 64, 64).unwrap();
        assert_eq!((first.pages(), second.pages()), (64, 36));
        assert_eq!(pending.next_chunk(1, 64, 64), None);
        assert_eq!(pending.pages(), 100);
        assert_eq!(pending.acknowledge(second.id), Ok(36));
        assert_eq!(pending.acknowledge(second.id), Err(UnknownChunk(second.id)));
        assert_eq!(pending.pages(), 64);
        pending.put_back();
        assert_eq!(pending.next_chunk(2, 64, 64).unwrap().ranges, first.ranges);
        assert!(!pending.is_empty());
    }
}
