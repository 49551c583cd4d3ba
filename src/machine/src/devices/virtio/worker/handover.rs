//! The worker and the other host: hold, hand over, adopt, release.

use std::time::{Duration, Instant};

use vmferry_block::table::HandedOver;
use vmferry_block::{Fate, FormerOwner, JobEnd, JobId, JobRecord};

use super::{LOOK_EVERY, Phase, Tag, Worker};
use crate::devices::virtio::disks::IoEvent;
use crate::devices::virtio::ring::{Position, Ring};

/// Longest wait for what can be cancelled at once.
const SWEEP: Duration = Duration::from_millis(1);
/// And for the next of it: what takes longer is not given back, but done.
const QUIET: Duration = Duration::from_micros(200);

/// What has become of a disk's jobs when it was held.
#[derive(Debug, Default)]
pub(crate) struct HeldDisk {
    /// Those that are not done.
    pub(crate) jobs: Vec<JobRecord>,
    /// In flight when it began.
    pub(crate) in_flight: u32,
    /// Of these, done since: the guest was told.
    pub(crate) completed: u32,
}

/// What travels of a worker.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// By queue.
    pub(crate) positions: Vec<Position>,
    pub(crate) next_job: u64,
    /// Each with whether its queue is gone.
    pub(crate) jobs: Vec<(HandedOver<Tag>, bool)>,
}

/// What is taken from another host, checked.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) rings: Vec<Option<Ring>>,
    pub(crate) next_job: u64,
    pub(crate) jobs: Vec<HandedOver<Tag>>,
    /// Those whose queue is gone.
    pub(crate) orphans: Vec<JobId>,
}

impl Worker {
    /// Takes no more requests, asks for the end of everything in flight, and hands over what has
    /// not ended within a moment. The guest is told of nothing after that.
    pub(crate) fn hold(&mut self) -> HeldDisk {
        let mut held = HeldDisk::default();
        if self.phase == Phase::Running {
            self.reap();
            self.act();
            held.in_flight = self.in_backend.len() as u32;
            let before = self.stats.requests;
            self.phase = Phase::HandedOver;
            // Before anything is cancelled: what is half done then ends, and is not carried on.
            self.backend.hold(true);
            self.table.hold();
            self.act();
            self.sweep();
            held.completed = (self.stats.requests - before) as u32;
        }
        if self.phase == Phase::HandedOver {
            let jobs = self.table.hand_over();
            self.reissue_below = self.table.next_id();
            held.jobs = jobs.iter().map(|job| self.record(job)).collect();
        } else {
            held.jobs.clone_from(&self.adopted);
        }
        held
    }

    fn record(&self, job: &HandedOver<Tag>) -> JobRecord {
        JobRecord {
            key: self.key(job.id),
            kind: job.kind,
            extent: job.extent,
            fate: job.fate,
        }
    }

    /// Reaps for as long as something comes at once.
    fn sweep(&mut self) {
        let began = Instant::now();
        let (mut last, mut left) = (began, self.in_backend.len());
        loop {
            self.reap();
            self.act();
            if self.in_backend.len() < left {
                (last, left) = (Instant::now(), self.in_backend.len());
            }
            if left == 0 || began.elapsed() >= SWEEP || last.elapsed() >= QUIET {
                return;
            }
            std::thread::sleep(QUIET / 10);
        }
    }

    /// Whether it is held.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::HandedOver | Phase::Waiting)
    }

    /// What travels.
    ///
    /// # Errors
    /// In words, where it is not held, or waits for another host itself.
    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, String> {
        if !self.is_held() {
            return Err("it is in use: hold the disks before the machine is saved".to_owned());
        }
        self.has_no_fences()?;
        let orphans = &self.orphans;
        Ok(Snapshot {
            positions: self.rings.iter().map(position).collect(),
            jobs: self
                .table
                .hand_over()
                .into_iter()
                .map(|job| (orphans.contains(&job.id), job))
                .map(|(orphan, job)| (job, orphan))
                .collect(),
            next_job: self.table.next_id(),
        })
    }

    /// Takes what another host has handed over. It waits for the release.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn adopt(&mut self, adoption: Adoption) -> Result<(), String> {
        let records = adoption.jobs.iter().map(|job| self.record(job)).collect();
        self.table
            .adopt(adoption.next_job, adoption.jobs)
            .map_err(|e| e.to_string())?;
        self.adopted = records;
        self.reissue_below = adoption.next_job;
        self.rings = adoption.rings;
        self.orphans = adoption.orphans.into_iter().collect();
        self.shared.set_draining(!self.orphans.is_empty());
        self.phase = Phase::Waiting;
        Ok(())
    }

    /// Jobs that were adopted.
    pub(crate) fn adopted(&self) -> Vec<JobRecord> {
        self.adopted.clone()
    }

    /// The vCPUs are about to run: everything goes its way (again).
    pub(crate) fn release(&mut self) {
        if !self.is_held() {
            return;
        }
        if std::mem::take(&mut self.heir) {
            self.backend.inherit();
            self.may_be_shared = true;
        }
        self.backend.hold(false);
        self.phase = Phase::Running;
        let now = Instant::now();
        let fences = self.table.fences().keys();
        self.fences = fences.map(|id| (*id, now)).collect();
        self.table.release();
        self.act();
        // Whatever was notified of may have been lost with the former host.
        self.process_all();
        self.act();
        self.shared.repeat_interrupt();
    }

    /// An unsettled job of the former owner has ended.
    pub(crate) fn settle(&mut self, id: JobId, end: JobEnd) {
        let known = self.table.job(id).is_some();
        if !self.table.settled(id, end) {
            return;
        }
        if let Some(since) = self.fences.remove(&id) {
            let waited = since.elapsed();
            self.stats.fence_wait += waited;
            self.stats.longest_fence_wait = self.stats.longest_fence_wait.max(waited);
        }
        if !known {
            let key = self.key(id);
            self.watch.tell(IoEvent::Completed(key));
        }
    }

    /// An unsettled job of a former owner is known from the journal only.
    pub(crate) fn fence(&mut self, record: &JobRecord) {
        if record.fate == Fate::Unsettled {
            self.table.fence(record.key.job, record.extent);
            self.fences.insert(record.key.job, Instant::now());
            self.may_be_shared = true;
        }
    }

    /// Whether another host can have the disk.
    ///
    /// # Errors
    /// In words, what stands against it.
    pub(crate) fn may_move(&mut self) -> Result<(), String> {
        if self.looks_for_former_owner() {
            self.look_now();
        }
        self.has_no_fences()?;
        self.backend.may_move()
    }

    fn has_no_fences(&self) -> Result<(), String> {
        match self.table.fences().len() {
            0 => Ok(()),
            n => Err(format!(
                "{n} writes of the host that had it before are not settled: wait until they are, \
                 or see to it that that host lets go of the disk"
            )),
        }
    }

    /// Whether storage is asked, every now and then, for the former owner.
    pub(super) fn looks_for_former_owner(&self) -> bool {
        self.phase == Phase::Running && self.may_be_shared
    }

    /// Asks storage for the former owner, if it is time to.
    pub(super) fn look_for_former_owner(&mut self) {
        let soon = |at: Instant| at.elapsed() < LOOK_EVERY;
        if self.looks_for_former_owner() && !self.looked.is_some_and(soon) {
            self.look_now();
        }
    }

    /// Lifts all fences once storage says that nobody is behind them.
    fn look_now(&mut self) {
        self.looked = Some(Instant::now());
        match self.backend.former_owner() {
            FormerOwner::There => {}
            FormerOwner::Unknown => self.may_be_shared = false,
            FormerOwner::Gone => {
                self.may_be_shared = false;
                let fenced: Vec<JobId> = self.table.fences().keys().copied().collect();
                for id in fenced {
                    self.settle(id, JobEnd::Unknown);
                }
            }
        }
    }

    /// The machine is gone: nothing more than to wait for what is in flight. Returns whether
    /// there is nothing.
    pub(crate) fn retire(&mut self) -> bool {
        if self.phase == Phase::Running {
            self.table.hold();
            self.backend.hold(true);
        }
        self.phase = Phase::Retired;
        self.rings.clear();
        self.act();
        self.reap();
        self.act();
        self.in_backend.is_empty()
    }
}

fn position(ring: &Option<Ring>) -> Position {
    ring.as_ref().map(Ring::position).unwrap_or_default()
}
