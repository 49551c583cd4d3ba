//! A disk's state as it travels, and its check. Whoever sends it may be hostile.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmferry_block::table::HandedOver;
use vmferry_block::{Extent, Fate, JobId, JobKind};
use vmferry_memory::GuestRam;

use super::mmio::{DRIVER_OK, FEATURES_OK, Registers, STATUS_BITS};
use super::offer::{Offer, SECTOR};
use super::request::Run;
use super::ring::{Position, Ring};
use super::shared::{CONFIG, Shared, USED};
use super::worker::{Adoption, MAX_DISK_JOBS, Snapshot, Tag, buffers};

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDisk {
    /// Its size in bytes.
    bytes: u64,
    /// What the guest was told of its blocks, in bytes.
    block_size: u32,
    pub(super) registers: Registers,
    pub(super) interrupts: u32,
    pub(super) broken: bool,
    /// Positions in the available and in the used ring, by queue, of a device that is started.
    positions: Vec<(u16, u16)>,
    /// Number of the next job.
    next_job: u64,
    jobs: Vec<SavedJob>,
}

/// A request that is not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedJob {
    id: JobId,
    kind: JobKind,
    extent: Extent,
    fate: Fate,
    /// Whose answer is waited for; none where the queue is gone.
    chain: Option<SavedChain>,
}

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedChain {
    queue: u16,
    head: u16,
    /// Guest-physical address of the status byte.
    status: u64,
    runs: Vec<Run>,
}

impl SavedDisk {
    pub(super) fn new(
        registers: &Registers,
        shared: &Shared,
        offer: &Offer,
        snapshot: Snapshot,
    ) -> Self {
        let job = |(job, orphan): (HandedOver<Tag>, bool)| SavedJob {
            id: job.id,
            kind: job.kind,
            extent: job.extent,
            fate: job.fate,
            chain: (!orphan).then_some(SavedChain {
                queue: job.tag.queue,
                head: job.tag.head,
                status: job.tag.status,
                runs: job.tag.runs,
            }),
        };
        let positions = snapshot.positions.iter();
        Self {
            bytes: offer.bytes,
            block_size: offer.block_size,
            registers: registers.clone(),
            interrupts: shared.interrupts(),
            broken: shared.broken(),
            positions: positions.map(|p| (p.avail, p.used)).collect(),
            next_job: snapshot.next_job,
            jobs: snapshot.jobs.into_iter().map(job).collect(),
        }
    }
}

/// A disk's state, and what it has to fit.
#[derive(Debug)]
pub(super) struct Unchecked<'a> {
    pub(super) saved: &'a SavedDisk,
    pub(super) ram: &'a Arc<GuestRam>,
    pub(super) offer: &'a Offer,
    /// Number of queues here.
    pub(super) queues: usize,
}

impl TryFrom<Unchecked<'_>> for Adoption {
    type Error = String;

    fn try_from(unchecked: Unchecked<'_>) -> Result<Self, String> {
        let Unchecked { saved, offer, .. } = unchecked;
        if saved.bytes != offer.bytes {
            return Err(format!(
                "it has {} bytes on the other host, and {} here: is it the same disk?",
                saved.bytes, offer.bytes
            ));
        }
        if saved.block_size < offer.block_size {
            return Err(format!(
                "the guest knows it as one with blocks of {} bytes, and here writes must be a \
                 multiple of {}: the storage differs between the hosts",
                saved.block_size, offer.block_size
            ));
        }
        unchecked.check_registers()?;
        let mut adoption = Self {
            rings: unchecked.rings()?,
            next_job: saved.next_job,
            jobs: Vec::new(),
            orphans: Vec::new(),
        };
        if saved.jobs.len() > MAX_DISK_JOBS {
            return Err(format!("{} jobs are too many", saved.jobs.len()));
        }
        let mut ids = BTreeSet::new();
        for job in &saved.jobs {
            let wrong = |why: &str| format!("job {}: {why}", job.id.0);
            if job.id.0 >= saved.next_job || !ids.insert(job.id) {
                return Err(wrong("the number is not one that was given once"));
            }
            let tag = unchecked.tag(job, &mut adoption.rings).map_err(wrong)?;
            if job.chain.is_none() {
                adoption.orphans.push(job.id);
            }
            adoption.jobs.push(HandedOver {
                id: job.id,
                kind: job.kind,
                extent: job.extent,
                fate: job.fate,
                tag,
            });
        }
        Ok(adoption)
    }
}

impl Unchecked<'_> {
    fn check_registers(&self) -> Result<(), String> {
        let SavedDisk {
            registers,
            interrupts,
            ..
        } = self.saved;
        if registers.queues.len() != self.queues {
            return Err(format!(
                "it has {} queues on the other host, and {} here",
                registers.queues.len(),
                self.queues
            ));
        }
        let status = registers.status;
        if status & !STATUS_BITS != 0 || interrupts & !(USED | CONFIG) != 0 {
            return Err("its registers hold what no device has".to_owned());
        }
        if status & FEATURES_OK == 0 {
            return match status & DRIVER_OK {
                0 => Ok(()),
                _ => Err("it is started without features".to_owned()),
            };
        }
        let missing = registers.driver_features & !self.offer.features;
        if missing != 0 || !registers.features_fit(self.offer) {
            return Err(format!(
                "the guest's driver uses features that it does not have here: {missing:#x}"
            ));
        }
        Ok(())
    }

    fn rings(&self) -> Result<Vec<Option<Ring>>, String> {
        let SavedDisk {
            registers,
            positions,
            broken,
            ..
        } = self.saved;
        if !registers.started() || *broken {
            return match positions.is_empty() {
                true => Ok(Vec::new()),
                false => Err("queues of a device that is not started".to_owned()),
            };
        }
        if positions.len() != self.queues {
            return Err(format!("positions of {} queues", positions.len()));
        }
        let event_idx = registers.has(VIRTIO_RING_F_EVENT_IDX);
        let ring = |(set, &(avail, used))| {
            let set: &super::mmio::QueueRegisters = set;
            if !set.ready {
                return Ok(None);
            }
            Ring::new(set, Position { avail, used }, event_idx, self.ram)
                .map(Some)
                .map_err(|broken| broken.0.to_owned())
        };
        registers.queues.iter().zip(positions).map(ring).collect()
    }

    /// What the device has to know of `job`, which is noted in its queue.
    fn tag(&self, job: &SavedJob, rings: &mut [Option<Ring>]) -> Result<Tag, &'static str> {
        let (kind, extent) = (job.kind, job.extent);
        if kind == JobKind::Flush {
            if extent != Extent::default() {
                return Err("a flush with a range");
            }
        } else if extent.len == 0
            || !extent.offset.is_multiple_of(SECTOR)
            || !extent.len.is_multiple_of(SECTOR)
            || !extent.is_within(self.offer.bytes)
        {
            return Err("a range that is not on the disk");
        }
        if kind.changes_disk() && self.offer.read_only {
            return Err("it changes a disk that is read-only here");
        }
        let Some(chain) = &job.chain else {
            return Ok(Tag::new(0, 0, 0, kind, Vec::new()));
        };
        let ring = rings
            .get_mut(usize::from(chain.queue))
            .and_then(Option::as_mut)
            .ok_or("a queue that is not started")?;
        if chain.head >= ring.size() || !ring.begin(chain.head, job.id) {
            return Err("a place in its queue that is not there, or another's");
        }
        let tag = Tag::new(
            chain.queue,
            chain.head,
            chain.status,
            kind,
            chain.runs.clone(),
        );
        let data = match kind {
            JobKind::Read | JobKind::Write => extent.len,
            _ => 0,
        };
        if data > self.offer.max_transfer || chain.runs.len() > self.offer.segments as usize + 2 {
            return Err("the storage takes less at once here");
        }
        let buffers = buffers(self.ram, &tag).map_err(|_| "memory that is not RAM")?;
        if buffers.len() != data {
            return Err("memory of another length than its range");
        }
        let status = vmferry_block::Buffers::new(self.ram, [(chain.status, 1)]);
        status.map_err(|_| "a status byte that is not RAM")?;
        Ok(tag)
    }
}
