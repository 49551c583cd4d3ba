//! All disks of a machine, as the rest of the program holds them.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmferry_block::{Fate, JobKey, JobRecord, Role, Settlement};
use vmferry_guest::abi::{DISK_MMIO_BASE, DISK_MMIO_SIZE};
use vmferry_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::open::OpenDisk;
use super::state::SavedDisk;
use super::worker::{HeldDisk, Worker};
use super::{FIRST_GSI, MAX_DISKS};
use crate::{MachineConfig, MachineError, lock};

/// Something that a disk tells of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEvent {
    /// At the source: a job that was handed over as unsettled has ended.
    Settled(Settlement),
    /// At the destination: nothing is left to do for a job that came from another host. It was
    /// completed to the guest, or was known from the journal only, and its fence is lifted.
    Completed(JobKey),
}

/// Where a disk's events go. Called on a disk's thread: it must not block, and must not call
/// [`Disks`].
pub type IoSink = Arc<dyn Fn(IoEvent) + Send + Sync>;

/// What has become of the jobs in flight when the disks were held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldIo {
    /// Those that are not done: they go to the new owner.
    pub jobs: Vec<JobRecord>,
    /// In flight when it began.
    pub in_flight: u32,
    /// Of these, ended since: the guest was told.
    pub completed: u32,
    /// Jobs that do not touch the disk any more, or never did.
    pub cancelled: u32,
    /// Jobs that may still change the disk.
    pub unsettled: u32,
    /// How long it took.
    pub took: Duration,
}

/// What disks have done, and have to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Requests that were answered.
    pub requests: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Jobs that the storage has.
    pub in_flight: u64,
    /// Jobs that wait for a fence to be lifted.
    pub kept_back: u64,
    /// Writes of a former owner that are not settled.
    pub fences: u64,
    /// Jobs that were handed to the storage again after a handover.
    pub reissued: u64,
    /// How long fences stood that are lifted, all together.
    pub fence_wait: Duration,
    /// How long the longest of them stood.
    pub longest_fence_wait: Duration,
}

/// Where events go, once somebody watches.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<IoSink>>);

impl Watch {
    pub(super) fn tell(&self, event: IoEvent) {
        let sink = lock(&self.0).clone();
        if let Some(sink) = sink {
            sink(event);
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// A machine's disks. All calls return within microseconds, [`Self::hold`] within about a
/// millisecond: none waits for storage. They may be made from any thread but a disk's own.
#[derive(Debug)]
pub struct Disks {
    disks: Vec<Disk>,
    watch: Arc<Watch>,
}

impl Disks {
    /// Opens all disks of `config` and starts their workers.
    ///
    /// # Errors
    /// [`MachineError::Config`], [`MachineError::Disk`], [`MachineError::Threads`].
    pub(crate) fn open(
        config: &MachineConfig,
        ram: &Arc<GuestRam>,
        role: Role,
        opener: &OpenDisk,
    ) -> Result<Arc<Self>, MachineError> {
        check(config)?;
        let watch = Arc::new(Watch::default());
        let mut disks = Vec::new();
        for (index, spec) in (0..).zip(&config.disks) {
            let backend = opener(spec, role)?;
            let disk = Disk::start(index, spec, backend, (ram, &watch, role));
            disks.push(disk.map_err(|e| {
                MachineError::Threads(format!("cannot start the worker of disk {index}: {e}"))
            })?);
        }
        Ok(Arc::new(Self { disks, watch }))
    }

    /// A read of guest-physical address `addr`, where a disk's registers are; what is nobody's
    /// reads as all ones.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        match self.at(addr) {
            Some((disk, offset)) => disk.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to guest-physical address `addr`.
    pub fn mmio_write(&self, addr: u64, data: &[u8]) {
        if let Some((disk, offset)) = self.at(addr) {
            disk.write(offset, data);
        }
    }

    /// The disk whose registers `addr` is among, and its offset there.
    fn at(&self, addr: u64) -> Option<(&Disk, u64)> {
        let offset = addr.checked_sub(DISK_MMIO_BASE)?;
        let index = usize::try_from(offset / DISK_MMIO_SIZE).ok()?;
        Some((self.disks.get(index)?, offset % DISK_MMIO_SIZE))
    }

    /// Takes no more requests from the guest, whose vCPUs stand, asks for the end of everything
    /// in flight, and hands over what has not ended within a moment. After that the guest's
    /// memory is not written by the disks, but for the data of reads that the storage still has;
    /// the new owner issues those once more.
    #[must_use]
    pub fn hold(&self) -> HeldIo {
        let began = Instant::now();
        let asked: Vec<Receiver<HeldDisk>> = self.each(|disk| disk.ask(Worker::hold));
        let mut held = HeldIo::default();
        for disk in asked.into_iter().filter_map(|a| a.recv().ok()) {
            held.in_flight += disk.in_flight;
            held.completed += disk.completed;
            held.jobs.extend(disk.jobs);
        }
        let unsettled = held.jobs.iter().filter(|j| j.fate == Fate::Unsettled);
        held.unsettled = unsettled.count() as u32;
        held.cancelled = held.jobs.len() as u32 - held.unsettled;
        held.took = began.elapsed();
        held
    }

    /// Everything goes its way, or goes it again: at the source all jobs are taken back, at the
    /// destination those that were adopted are issued. Nothing where they are not held.
    /// [`crate::Machine::resume`] does it first.
    pub fn release(&self) {
        self.wait(self.each(|disk| disk.ask(Worker::release)));
    }

    /// Whether they are held, all of them; true where there is none.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let asked = self.each(|disk| disk.ask(|w| w.is_held()));
        self.wait(asked).into_iter().all(|held| held)
    }

    /// Whether another host can have the disks.
    ///
    /// # Errors
    /// In words, with the disk's name: what stands against it, and what to do.
    pub fn may_move(&self) -> Result<(), String> {
        for disk in &self.disks {
            let may = disk.ask(|w| w.may_move()).recv();
            may.unwrap_or_else(|_| Err("its worker has ended: see the log".to_owned()))
                .map_err(|why| format!("{}: {why}", disk.name))?;
        }
        Ok(())
    }

    /// Jobs that came from another host when the machine was restored.
    #[must_use]
    pub fn adopted(&self) -> Vec<JobRecord> {
        let asked = self.each(|disk| disk.ask(|w| w.adopted()));
        self.wait(asked).into_iter().flatten().collect()
    }

    /// Unsettled jobs of the former owner have ended: what waits for them goes its way.
    pub fn settle(&self, settlements: &[Settlement]) {
        let settle = |&Settlement { key, end }: &Settlement| {
            let disk = self.disks.get(usize::from(key.disk))?;
            Some(disk.ask(move |w| w.settle(key.job, end)))
        };
        self.wait(settlements.iter().filter_map(settle).collect());
    }

    /// An unsettled job of a former owner is known from a journal: whatever overlaps it waits
    /// until it is [settled](Self::settle), or storage says that nobody is behind it.
    pub fn fence(&self, record: JobRecord) {
        if let Some(disk) = self.disks.get(usize::from(record.key.disk)) {
            let _ = disk.ask(move |w| w.fence(&record)).recv();
        }
    }

    /// Where events go from here on. To be called before [`Self::hold`], or before the machine
    /// runs: earlier events are not told again.
    pub fn watch(&self, sink: IoSink) {
        *lock(&self.watch.0) = Some(sink);
    }

    /// Sums over all disks.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let asked = self.each(|disk| disk.ask(|w| w.stats()));
        let sum = |a: DiskStats, b: DiskStats| DiskStats {
            requests: a.requests + b.requests,
            errors: a.errors + b.errors,
            in_flight: a.in_flight + b.in_flight,
            kept_back: a.kept_back + b.kept_back,
            fences: a.fences + b.fences,
            reissued: a.reissued + b.reissued,
            fence_wait: a.fence_wait + b.fence_wait,
            longest_fence_wait: a.longest_fence_wait.max(b.longest_fence_wait),
        };
        self.wait(asked).into_iter().fold(DiskStats::default(), sum)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.disks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// What travels of each disk.
    ///
    /// # Errors
    /// In words, where they are not held.
    pub(crate) fn save(&self) -> Result<Vec<SavedDisk>, String> {
        let save = |disk: &Disk| {
            let saved = disk.save();
            saved.map_err(|why| format!("{}: {why}", disk.name))
        };
        self.disks.iter().map(save).collect()
    }

    /// Sets what has come from another host, once all of it is checked.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn restore(&self, saved: &[SavedDisk]) -> Result<(), String> {
        if saved.len() != self.disks.len() {
            return Err(format!(
                "it has {} disks, the machine {}",
                saved.len(),
                self.disks.len()
            ));
        }
        let named = |disk: &Disk| {
            let name = disk.name.clone();
            move |why: String| format!("{name}: {why}")
        };
        let pairs = self.disks.iter().zip(saved);
        let checked = pairs
            .map(|(disk, saved)| disk.check(saved).map_err(named(disk)))
            .collect::<Result<Vec<_>, _>>()?;
        for (disk, checked) in self.disks.iter().zip(checked) {
            disk.adopt(checked).map_err(named(disk))?;
        }
        Ok(())
    }

    /// What KVM has to know of each disk.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        (0..).zip(&self.disks).map(|(index, disk)| {
            let (irq, kick, queues) = disk.lines();
            Line {
                address: DISK_MMIO_BASE + u64::from(index) * DISK_MMIO_SIZE,
                gsi: FIRST_GSI + index,
                irq,
                kick,
                queues: queues as u32,
            }
        })
    }

    /// Ends the workers; those with something in flight end by themselves, when it has ended.
    pub(crate) fn retire(&self) {
        self.disks.iter().for_each(Disk::retire);
    }

    fn each<R>(&self, ask: impl FnMut(&Disk) -> R) -> Vec<R> {
        self.disks.iter().map(ask).collect()
    }

    /// Answers, of workers that are there.
    fn wait<R>(&self, asked: Vec<Receiver<R>>) -> Vec<R> {
        asked.into_iter().filter_map(|a| a.recv().ok()).collect()
    }
}

/// How a disk is wired.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// Guest-physical address of its registers.
    pub(crate) address: u64,
    /// Its interrupt line, edge triggered.
    pub(crate) gsi: u32,
    /// Written to interrupt the guest.
    pub(crate) irq: &'a EventFd,
    /// To be written when the guest notifies of a queue.
    pub(crate) kick: &'a EventFd,
    /// Number of queues.
    pub(crate) queues: u32,
}

/// Whether a machine can have such disks.
fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let refuse = |why: String| Err(MachineError::Config(why));
    if config.disks.len() > MAX_DISKS {
        let n = config.disks.len();
        return refuse(format!("{n} disks: give at most {MAX_DISKS}"));
    }
    for spec in &config.disks {
        if let Err(why) = spec.check() {
            return refuse(format!("disk '{}': {why}", spec.source));
        }
    }
    Ok(())
}
