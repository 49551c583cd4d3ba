//! The worker and the guest: requests out of the queues, and their answers.

use vm_memory::{Bytes, GuestAddress};
use vmferry_block::{JobEnd, JobId, JobKind};

use super::{MAX_DISK_JOBS, Phase, Tag, Worker, buffers};
use crate::devices::virtio::disks::IoEvent;
use crate::devices::virtio::mmio::QueueRegisters;
use crate::devices::virtio::request::{self, Broken, Request, Run, What};
use crate::devices::virtio::ring::{Position, Ring};
use crate::devices::virtio::shared::CONFIG;

impl Worker {
    /// The driver has set its queues, and starts the device.
    pub(crate) fn start(&mut self, queues: &[QueueRegisters], event_idx: bool) {
        self.stop_all();
        let ring = |set: &QueueRegisters| match set.ready {
            true => Ring::new(set, Position::default(), event_idx, &self.ram).map(Some),
            false => Ok(None),
        };
        match queues.iter().map(ring).collect() {
            Ok(rings) => self.rings = rings,
            Err(broken) => return self.break_down(broken),
        }
        self.process_all();
    }

    /// The driver has reset the device.
    pub(crate) fn stop_all(&mut self) {
        for queue in 0..self.rings.len() {
            self.stop_queue(queue);
        }
        self.rings.clear();
    }

    /// The driver takes a queue back: it is to be told nothing of what it had asked for there.
    pub(crate) fn stop_queue(&mut self, queue: usize) {
        let Some(ring) = self.rings.get_mut(queue).and_then(Option::take) else {
            return;
        };
        for job in ring.jobs() {
            self.orphans.insert(job);
            if self.in_backend.contains(&job) {
                self.backend.cancel(job);
            }
        }
        self.shared.set_draining(!self.orphans.is_empty());
    }

    /// The driver has broken a queue: the device stops until it is reset.
    fn break_down(&mut self, Broken(what): Broken) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                disk = self.index,
                "the guest's driver has broken the disk: {what}; it stands still until it is reset"
            );
        }
        self.stop_all();
        self.shared.set_broken(true);
        self.shared.interrupt(CONFIG);
    }

    /// Takes requests out of all queues.
    pub(super) fn process_all(&mut self) {
        for queue in 0..self.rings.len() {
            if let Err(broken) = self.process(queue) {
                return self.break_down(broken);
            }
        }
    }

    /// Takes requests out of a queue, as many as it has entries: a guest that makes them faster
    /// than that is not to keep the worker from everything else.
    fn process(&mut self, queue: usize) -> Result<(), Broken> {
        let mut left = self.ring(queue).map_or(0, |r| u32::from(r.size()));
        // The ring has said, at the end of the last round, that there are requests.
        let mut promised = false;
        while self.phase == Phase::Running {
            let ram = self.ram.clone();
            let Some(ring) = self.ring(queue) else {
                return Ok(());
            };
            ring.notifications(false, &ram)?;
            let before = left;
            while left > 0 {
                if self.table.len() >= MAX_DISK_JOBS {
                    self.starved = true;
                    return Ok(());
                }
                if !self.take_one(queue)? {
                    break;
                }
                left -= 1;
            }
            let Some(ring) = self.ring(queue) else {
                return Ok(());
            };
            if !ring.notifications(true, &ram)? {
                return Ok(());
            }
            if left == 0 {
                let _ = self.shared.kick.write(1);
                return Ok(());
            }
            // One that came while this one looked elsewhere is taken in the next round.
            if left == before && promised {
                return Err(Broken("an available ring that cannot be read"));
            }
            promised = true;
        }
        Ok(())
    }

    fn ring(&mut self, queue: usize) -> Option<&mut Ring> {
        self.rings.get_mut(queue)?.as_mut()
    }

    /// Takes one request, if there is one.
    fn take_one(&mut self, queue: usize) -> Result<bool, Broken> {
        let (ram, offer) = (self.ram.clone(), self.offer.clone());
        let Some(ring) = self.ring(queue) else {
            return Ok(false);
        };
        let Some((head, Request { status, what })) = ring.next(&ram, &offer)? else {
            return Ok(false);
        };
        let refused = match what {
            What::Job { kind, extent, runs } => {
                let tag = Tag::new(queue as u16, head, status, kind, runs);
                if buffers(&ram, &tag).is_ok() {
                    let job = self.table.request(kind, extent, tag);
                    if let Some(ring) = self.ring(queue) {
                        ring.begin(head, job);
                    }
                    return Ok(true);
                }
                request::IO_ERROR
            }
            What::Identify(runs) => {
                if let Some(n) = self.identify(&runs) {
                    self.answer(queue, head, (request::OK, status), n + 1)?;
                    return Ok(true);
                }
                request::IO_ERROR
            }
            What::Refused(why) => why,
        };
        self.stats.errors += 1;
        self.answer(queue, head, (refused, status), 1)?;
        Ok(true)
    }

    fn answer(
        &mut self,
        queue: usize,
        head: u16,
        status: (u8, u64),
        written: u32,
    ) -> Result<(), Broken> {
        self.stats.requests += 1;
        let ram = self.ram.clone();
        match self.ring(queue) {
            Some(ring) => ring.answer(ram.guest_memory(), head, status, written),
            None => Ok(()),
        }
    }

    /// Writes the serial id to guest memory; how many bytes of it.
    fn identify(&self, runs: &[Run]) -> Option<u32> {
        let mut at = 0;
        for (gpa, len) in runs {
            let rest = &self.offer.serial[at..];
            let part = &rest[..rest.len().min(*len as usize)];
            if !part.is_empty() {
                let memory = self.ram.guest_memory();
                memory.write_slice(part, GuestAddress(*gpa)).ok()?;
                at += part.len();
            }
        }
        Some(at as u32)
    }

    /// Tells the guest of a job's end.
    pub(super) fn complete(&mut self, id: JobId, tag: &Tag, end: JobEnd, adopted: bool) {
        if self.orphans.remove(&id) {
            self.shared.set_draining(!self.orphans.is_empty());
        } else if self.phase != Phase::Retired {
            let (status, written) = match end {
                JobEnd::Done => (request::OK, tag.written),
                JobEnd::Failed(libc::EOPNOTSUPP) => (request::UNSUPPORTED, 1),
                _ => (request::IO_ERROR, 1),
            };
            self.stats.errors += u64::from(status != request::OK);
            let at = (status, tag.status);
            if let Err(broken) = self.answer(usize::from(tag.queue), tag.head, at, written) {
                self.break_down(broken);
            }
        }
        if adopted {
            let key = self.key(id);
            self.watch.tell(IoEvent::Completed(key));
        }
    }
}

impl Tag {
    /// For a chain of `queue` that has become a job.
    pub(crate) fn new(queue: u16, head: u16, status: u64, kind: JobKind, runs: Vec<Run>) -> Self {
        let len: u64 = runs.iter().map(|(_, len)| u64::from(*len)).sum();
        let data = if kind == JobKind::Read { len } else { 0 };
        Self {
            queue,
            head,
            status,
            runs,
            written: u32::try_from(data + 1).unwrap_or(u32::MAX),
        }
    }
}
