//! A disk's worker: one thread that owns queues, job table and backend. It waits for
//! notifications, completions and commands, and for nothing else: never for storage.

mod guest;
mod handover;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use vmferry_block::table::{Action, Table};
use vmferry_block::{
    BlockBackend, Buffers, Completion, Extent, JobEnd, JobId, JobKey, JobKind, JobRecord,
    Operation, Role, Settlement,
};
use vmferry_memory::GuestRam;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::disks::{DiskStats, IoEvent, Watch};
use super::offer::Offer;
use super::request::Run;
use super::ring::Ring;
use super::shared::{Shared, USED};

pub(super) use handover::{Adoption, HeldDisk, Snapshot};

/// Asks the worker for something. It runs on the worker's thread.
pub(super) type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// How often storage is asked whether the former owner is gone, while something waits for that.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Most jobs of a disk: what all its queues can hold, twice, as a reset leaves jobs behind.
pub(super) const MAX_DISK_JOBS: usize = 2 * super::MAX_QUEUES as usize * 256;

/// What the device wants back with a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Which queue's.
    pub(super) queue: u16,
    /// Index of the chain's first descriptor.
    pub(super) head: u16,
    /// Guest-physical address of the status byte.
    pub(super) status: u64,
    /// The data's guest memory.
    pub(super) runs: Vec<Run>,
    /// Bytes of guest memory that are written when it is done, the status byte included.
    pub(super) written: u32,
}

/// What the worker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everything.
    Running,
    /// Held: nothing new, and the guest is told of nothing.
    HandedOver,
    /// Nothing was released yet: what is known of adopted jobs waits, too.
    Waiting,
    /// Nothing but to wait until the backend has let go of everything.
    Retired,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Worker {
    index: u16,
    ram: Arc<GuestRam>,
    offer: Arc<Offer>,
    backend: Box<dyn BlockBackend>,
    table: Table<Tag>,
    rings: Vec<Option<Ring>>,
    phase: Phase,
    /// The disk is another host's until the first release.
    heir: bool,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    /// What the backend has.
    in_backend: BTreeSet<JobId>,
    /// Jobs of queues that are gone: nobody is to be told of their end.
    orphans: BTreeSet<JobId>,
    adopted: Vec<JobRecord>,
    /// Jobs of lower numbers that are submitted are submitted again.
    reissue_below: u64,
    /// Since when a fence is waited for.
    fences: BTreeMap<JobId, Instant>,
    /// The host that had the disk before may not have let go of it.
    may_be_shared: bool,
    /// When storage was asked for that host last.
    looked: Option<Instant>,
    /// The guest's driver has broken the device before: once is enough for the log.
    warned: bool,
    /// Requests were left in the queues, as there are too many jobs.
    starved: bool,
    stats: DiskStats,
    ended: Vec<Completion>,
}

impl Worker {
    pub(super) fn new(
        index: u16,
        (ram, offer, shared, watch): (Arc<GuestRam>, Arc<Offer>, Arc<Shared>, Arc<Watch>),
        backend: Box<dyn BlockBackend>,
        role: Role,
    ) -> io::Result<Self> {
        let heir = role == Role::Heir;
        Ok(Self {
            index,
            ram,
            offer,
            backend,
            table: Table::default(),
            rings: Vec::new(),
            phase: if heir { Phase::Waiting } else { Phase::Running },
            heir,
            shared,
            watch,
            in_backend: BTreeSet::new(),
            orphans: BTreeSet::new(),
            adopted: Vec::new(),
            reissue_below: 0,
            fences: BTreeMap::new(),
            may_be_shared: false,
            looked: None,
            warned: false,
            starved: false,
            stats: DiskStats::default(),
            ended: Vec::new(),
        })
    }

    /// Works until it is retired and nothing is in flight.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        if let Err(error) = self.work(commands) {
            tracing::error!(disk = self.index, %error, "the disk's worker cannot go on");
        }
    }

    fn work(&mut self, commands: &Receiver<Command>) -> io::Result<()> {
        let epoll = Epoll::new()?;
        add(&epoll, &self.shared.kick)?;
        add(&epoll, &self.shared.wake)?;
        add(&epoll, &self.backend.ready())?;
        let mut events = [EpollEvent::default(); 3];
        while !(self.phase == Phase::Retired && self.in_backend.is_empty()) {
            let timeout = match self.looks_for_former_owner() {
                true => LOOK_EVERY.as_millis() as i32,
                false => -1,
            };
            match epoll.wait(timeout, &mut events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
            // Cleared before anything is looked at: what comes later is seen the next time.
            let _ = self.shared.wake.read();
            self.obey(commands);
            if self.shared.kick.read().is_ok() {
                self.process_all();
            }
            self.reap();
            self.look_for_former_owner();
            self.act();
        }
        Ok(())
    }

    fn obey(&mut self, commands: &Receiver<Command>) {
        loop {
            match commands.try_recv() {
                Ok(command) => {
                    command(self);
                    self.act();
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.retire();
                    return;
                }
            }
        }
    }

    /// Takes what has ended.
    fn reap(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        self.backend.reap(&mut ended);
        for Completion { id, end } in ended.drain(..) {
            if self.in_backend.remove(&id) {
                self.table.finished(id, end);
            }
        }
        self.ended = ended;
    }

    /// Does what the table says is to be done, and interrupts the guest where it wants that.
    pub(super) fn act(&mut self) {
        loop {
            while self.phase != Phase::Waiting
                && let Some(action) = self.table.poll()
            {
                match action {
                    Action::Submit(id) => self.submit(id),
                    Action::Cancel(id) => self.backend.cancel(id),
                    Action::Complete {
                        id,
                        tag,
                        end,
                        adopted,
                    } => self.complete(id, &tag, end, adopted),
                    Action::Settled { id, end } => {
                        let key = self.key(id);
                        self.watch.tell(IoEvent::Settled(Settlement { key, end }));
                    }
                }
            }
            if !(self.starved && self.table.len() < MAX_DISK_JOBS / 2) {
                break;
            }
            self.starved = false;
            self.process_all();
        }
        let wanted = |ring: &mut Ring| ring.wants_interrupt(self.ram.guest_memory());
        // All are asked.
        if self
            .rings
            .iter_mut()
            .flatten()
            .filter_map(|r| wanted(r).then_some(()))
            .count()
            > 0
        {
            self.shared.interrupt(USED);
        }
    }

    fn submit(&mut self, id: JobId) {
        let Some((kind, extent, tag)) = self.table.job(id) else {
            return;
        };
        // Whose queue is gone gets nothing done: its memory may be used for something else.
        let buffers = match self.orphans.contains(&id) {
            true => Err(libc::ECANCELED),
            false => buffers(&self.ram, tag).map_err(|_| libc::EFAULT),
        };
        match buffers {
            Ok(buffers) => self.hand_in(id, kind, extent, buffers),
            Err(errno) => self.table.finished(id, JobEnd::Failed(errno)),
        }
    }

    fn hand_in(&mut self, id: JobId, kind: JobKind, extent: Extent, buffers: Buffers) {
        if id.0 < self.reissue_below {
            self.stats.reissued += 1;
        }
        self.in_backend.insert(id);
        self.backend.submit(Operation {
            id,
            kind,
            extent,
            buffers,
        });
    }

    fn key(&self, job: JobId) -> JobKey {
        JobKey {
            disk: self.index,
            job,
        }
    }

    pub(super) fn stats(&self) -> DiskStats {
        DiskStats {
            in_flight: self.in_backend.len() as u64,
            kept_back: self.table.kept_back() as u64,
            fences: self.table.fences().len() as u64,
            ..self.stats
        }
    }
}

/// The memory of a job's data.
pub(super) fn buffers(ram: &Arc<GuestRam>, tag: &Tag) -> Result<Buffers, u64> {
    match tag.runs.is_empty() {
        true => Ok(Buffers::none()),
        false => Buffers::new(ram, tag.runs.iter().copied()),
    }
}

fn add(epoll: &Epoll, fd: &impl AsRawFd) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
}
