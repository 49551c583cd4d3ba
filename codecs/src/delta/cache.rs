//! Pages as they were last sent, in bounded memory: what a difference is taken to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::PAGE;

/// Parts with a lock each, so that threads seldom wait for one another.
const SHARDS: usize = 16;
/// What a page takes: itself, its slot, its place in the map, and room that these grow into.
const SLOT_BYTES: usize = PAGE + 96;

/// Versions of pages. Used by any number of threads at once, for different pages.
///
/// A page is here as it was last [put](Self::put), or not at all: a version older than what was
/// sent last would make the destination's page wrong.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Mutex<Shard>>,
}

impl Cache {
    /// A cache that takes at most `bytes`; of 0 bytes, it keeps nothing.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let slots = bytes / SLOT_BYTES;
        let most = |at: usize| slots / SHARDS + usize::from(at < slots % SHARDS);
        let shards = (0..SHARDS).map(|at| Mutex::new(Shard::new(most(at))));
        Self {
            shards: shards.collect(),
        }
    }

    /// Copies page `gfn` as it was last put to `out`, which has the length of a page. Returns
    /// false, with `out` as it was, where it is not kept.
    pub fn get(&self, gfn: u64, out: &mut [u8]) -> bool {
        let shard = self.shard(gfn);
        match shard.slot(gfn) {
            Some(slot) if out.len() == PAGE => {
                out.copy_from_slice(&slot.page);
                true
            }
            _ => false,
        }
    }

    /// Keeps `page` as what was last sent as page `gfn`, in pass `pass`.
    ///
    /// Where there is no room, a page goes that was put neither in this pass nor in the one
    /// before. Where there is none such, this one is not kept: pages that are all written in
    /// every pass would otherwise push out one another, and none be there when it is asked for.
    pub fn put(&self, pass: u32, gfn: u64, page: &[u8]) {
        let mut shard = self.shard(gfn);
        if page.len() == PAGE {
            shard.put(pass, gfn, page);
        } else {
            shard.forget(gfn);
        }
    }

    /// Forgets page `gfn`: something else was sent last.
    pub fn forget(&self, gfn: u64) {
        self.shard(gfn).forget(gfn);
    }

    /// Bytes that it takes at present. Memory of pages forgotten is kept for others.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let slots = self.shards.iter().map(|shard| lock(shard).slots.len());
        slots.sum::<usize>() * SLOT_BYTES
    }

    /// Neighbours are in different shards, and so are pages at any usual stride.
    fn shard(&self, gfn: u64) -> MutexGuard<'_, Shard> {
        let mixed = gfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        lock(&self.shards[mixed as usize % SHARDS])
    }
}

/// A shard is whole after every step that can fail, so it is of use after a panic elsewhere.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Slot {
    /// Whose page it is, if anyone's.
    gfn: Option<u64>,
    /// When it was put.
    pass: u32,
    page: Box<[u8]>,
}

impl Slot {
    /// Whether another page may have it in pass `pass`.
    fn is_stale(&self, pass: u32) -> bool {
        self.gfn.is_some() && self.pass.saturating_add(1) < pass
    }
}

#[derive(Debug)]
struct Shard {
    slots: Vec<Slot>,
    /// Where each page is.
    index: HashMap<u64, usize>,
    /// Slots that are nobody's.
    free: Vec<usize>,
    /// Slots that were stale when the pass began.
    stale: Vec<usize>,
    /// The latest pass.
    pass: u32,
    /// Most slots.
    most: usize,
}

impl Shard {
    fn new(most: usize) -> Self {
        Self {
            slots: Vec::new(),
            index: HashMap::new(),
            free: Vec::new(),
            stale: Vec::new(),
            pass: 0,
            most,
        }
    }

    fn slot(&self, gfn: u64) -> Option<&Slot> {
        self.slots.get(*self.index.get(&gfn)?)
    }

    fn put(&mut self, pass: u32, gfn: u64, page: &[u8]) {
        if pass > self.pass {
            self.begin(pass);
        }
        let Some(at) = self.index.get(&gfn).copied().or_else(|| self.room()) else {
            return;
        };
        if at == self.slots.len() {
            self.slots.push(Slot {
                gfn: Some(gfn),
                pass,
                page: page.into(),
            });
        } else {
            let slot = &mut self.slots[at];
            if let Some(old) = slot.gfn.replace(gfn).filter(|&old| old != gfn) {
                self.index.remove(&old);
            }
            slot.pass = pass;
            slot.page.copy_from_slice(page);
        }
        self.index.insert(gfn, at);
    }

    fn forget(&mut self, gfn: u64) {
        if let Some(at) = self.index.remove(&gfn) {
            self.slots[at].gfn = None;
            self.free.push(at);
        }
    }

    /// Looks once in each pass for slots whose pages have not been put lately.
    fn begin(&mut self, pass: u32) {
        self.pass = pass;
        let slots = self.slots.iter().enumerate();
        let stale = slots.filter_map(|(at, slot)| slot.is_stale(pass).then_some(at));
        self.stale.clear();
        self.stale.extend(stale);
    }

    /// A slot for a page that has none: a free one, the next that there is not yet, a stale one.
    fn room(&mut self) -> Option<usize> {
        if let Some(at) = self.free.pop() {
            return Some(at);
        }
        if self.slots.len() < self.most {
            return Some(self.slots.len());
        }
        while let Some(at) = self.stale.pop() {
            // Its page may have been put or forgotten since.
            if self.slots[at].is_stale(self.pass) {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
