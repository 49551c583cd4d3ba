//! A queue that the driver has started, and the jobs that its chains have become.

use std::collections::BTreeMap;

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmferry_block::JobId;
use vmferry_memory::{GuestMemory, GuestRam};

use super::mmio::{QUEUE_SIZE, QueueRegisters};
use super::offer::Offer;
use super::request::{self, Broken, Request};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    /// Heads of chains that are not answered, with their jobs.
    heads: BTreeMap<u16, JobId>,
    /// Something was answered, and the driver may want to hear of it.
    answered: bool,
}

/// How far a queue has come: positions in the available and in the used ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) avail: u16,
    pub(super) used: u16,
}

impl Ring {
    /// The queue as the driver has set it, at `position`.
    ///
    /// # Errors
    /// [`Broken`] where that cannot be a queue.
    pub(super) fn new(
        set: &QueueRegisters,
        position: Position,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<Self, Broken> {
        let state = QueueState {
            max_size: QUEUE_SIZE,
            next_avail: position.avail,
            next_used: position.used,
            event_idx_enabled: event_idx,
            size: u16::try_from(set.size).map_err(|_| Broken("a queue's size"))?,
            ready: true,
            desc_table: set.table,
            avail_ring: set.avail,
            used_ring: set.used,
        };
        let queue = Queue::try_from(state).map_err(|_| Broken("a queue's size or alignment"))?;
        let size = u64::from(set.size);
        let parts = [
            (set.table, 16 * size),
            (set.avail, 6 + 2 * size),
            (set.used, 6 + 8 * size),
        ];
        let is_ram = |&(at, len): &(u64, u64)| {
            let memory = ram.guest_memory();
            memory.check_range(GuestAddress(at), len as usize)
        };
        // The crate takes an available ring at 0 for one that was not set.
        if set.avail == 0 || !parts.iter().all(is_ram) {
            return Err(Broken("a queue outside RAM"));
        }
        Ok(Self {
            queue,
            heads: BTreeMap::new(),
            answered: false,
        })
    }

    /// Entries of the queue.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where it is.
    pub(super) fn position(&self) -> Position {
        Position {
            avail: self.queue.next_avail(),
            used: self.queue.next_used(),
        }
    }

    /// Takes the next request out of the available ring: its head, and what it asks for.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn next(
        &mut self,
        ram: &GuestRam,
        offer: &Offer,
    ) -> Result<Option<(u16, Request)>, Broken> {
        let memory = ram.guest_memory();
        let mut available = self
            .queue
            .iter(memory)
            .map_err(|_| Broken("an available ring that is ahead of itself"))?;
        let Some(chain) = available.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        if self.heads.contains_key(&head) {
            return Err(Broken("a request that was not answered is made again"));
        }
        let request = request::parse(chain, ram, offer)?;
        Ok(Some((head, request)))
    }

    /// Has the driver notify of new requests, or not. Returns whether there are some.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn notifications(&mut self, wanted: bool, ram: &GuestRam) -> Result<bool, Broken> {
        let memory = ram.guest_memory();
        match wanted {
            true => self.queue.enable_notification(memory),
            false => self.queue.disable_notification(memory).map(|()| false),
        }
        .map_err(|_| Broken("a ring outside RAM"))
    }

    /// The chain at `head` has become a job. Returns false where another is at work there.
    pub(super) fn begin(&mut self, head: u16, job: JobId) -> bool {
        self.heads.insert(head, job).is_none()
    }

    /// Jobs of chains that are not answered.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        self.heads.values().copied()
    }

    /// Answers the chain at `head`: its status byte, and how many bytes were written with it.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn answer(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        (status, at): (u8, u64),
        written: u32,
    ) -> Result<(), Broken> {
        self.heads.remove(&head);
        memory
            .write_obj(status, GuestAddress(at))
            .map_err(|_| Broken("a status byte outside RAM"))?;
        self.answered = true;
        self.queue
            .add_used(memory, head, written)
            .map_err(|_| Broken("a used ring outside RAM"))
    }

    /// Whether the driver wants to be interrupted for what was answered since the last call.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> bool {
        std::mem::take(&mut self.answered) && self.queue.needs_notification(memory).unwrap_or(true)
    }
}
