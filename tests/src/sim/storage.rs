//! The storage of a simulated migration: both hosts' job tables, and one disk that does what it
//! was asked, when it likes, whoever is still there to hear of it.
//!
//! Checked: no job of the destination touches a range that a job of the source may still change;
//! the guest is told of each job once, and of all of them, where it lives on.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_block::table::{Action, HandedOver, Table};
use vmferry_block::{Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement};
use vmferry_protocol::destination::DestinationEvent;
use vmferry_protocol::source::{Outcome, SourceEvent};

use super::check::Violation;
use super::scenario::{PlantedBug, Side};
use super::world::{Next, World};

/// A request that is in flight when the guest is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimJob {
    /// What it does.
    pub kind: JobKind,
    /// Where.
    pub extent: Extent,
    /// The storage takes so long for it.
    pub takes: Duration,
    /// The storage gives it back when asked.
    pub cancels: bool,
}

impl SimJob {
    /// A write of a block that takes so long.
    #[must_use]
    pub const fn write(block: u64, takes: Duration) -> Self {
        Self {
            kind: JobKind::Write,
            extent: Extent::new(block * 4096, 4096),
            takes,
            cancels: false,
        }
    }
}

/// What a job takes that the destination issues.
const REISSUE: Duration = Duration::from_micros(300);

#[derive(Debug, Default)]
struct Host {
    table: Table<()>,
    /// What the storage has been asked by this host and has yet to do.
    in_flight: BTreeMap<JobId, (JobKind, Extent)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Storage {
    hosts: [Host; 2],
    /// How often the guest was told of each job.
    told: BTreeMap<JobId, u32>,
    handed_over: Vec<HandedOver<()>>,
}

const fn key(job: JobId) -> JobKey {
    JobKey { disk: 0, job }
}

impl World<'_> {
    /// The guest's last requests before it is paused.
    pub(super) fn request_storage(&mut self) -> Result<(), Violation> {
        if self.storage.told.is_empty() {
            for job in &self.s.jobs {
                let table = &mut self.storage.hosts[0].table;
                let id = table.request(job.kind, job.extent, ());
                self.storage.told.insert(id, 0);
            }
        }
        self.do_storage(Side::Source)
    }

    /// Everything in flight is asked to end; what does not is handed over.
    pub(super) fn cancel_storage(&mut self) -> Result<Vec<JobRecord>, Violation> {
        self.storage.hosts[0].table.hold();
        self.do_storage(Side::Source)?;
        self.storage.handed_over = self.storage.hosts[0].table.hand_over();
        let record = |job: &HandedOver<()>| JobRecord {
            key: key(job.id),
            kind: job.kind,
            extent: job.extent,
            fate: job.fate,
        };
        Ok(self.storage.handed_over.iter().map(record).collect())
    }

    /// The guest goes on at `side`, and so do its jobs.
    pub(super) fn release_storage(&mut self, side: Side) -> Result<(), Violation> {
        self.storage.hosts[side.index()].table.release();
        self.do_storage(side)
    }

    /// What the saved state brings to the destination.
    pub(super) fn adopt_storage(&mut self) -> Result<Vec<JobRecord>, Violation> {
        let mut jobs = self.storage.handed_over.clone();
        if self.bug(PlantedBug::ForgetsFences) {
            for job in &mut jobs {
                job.fate = Fate::Cancelled;
            }
        }
        let record = |job: &HandedOver<()>| JobRecord {
            key: key(job.id),
            kind: job.kind,
            extent: job.extent,
            fate: job.fate,
        };
        let records = jobs.iter().map(record).collect();
        let next = self.storage.hosts[0].table.next_id();
        self.storage.hosts[1].table = Table::default();
        let adopted = self.storage.hosts[1].table.adopt(next, jobs);
        adopted.map_err(|e| Violation::Order(e.to_string()))?;
        if self.bug(PlantedBug::SettlesAtOnce) {
            self.lift_all_fences()?;
        }
        Ok(records)
    }

    pub(super) fn settle_storage(&mut self, settlements: &[Settlement]) -> Result<(), Violation> {
        for s in settlements {
            self.storage.hosts[1].table.settled(s.key.job, s.end);
        }
        self.do_storage(Side::Destination)
    }

    /// The machine at the destination is dropped.
    pub(super) fn discard_storage(&mut self) {
        self.storage.hosts[1] = Host::default();
    }

    /// The storage has done something, for whoever is still there.
    pub(super) fn storage_ends(&mut self, side: Side, id: JobId) -> Result<(), Violation> {
        let host = &mut self.storage.hosts[side.index()];
        if host.in_flight.remove(&id).is_none() {
            return Ok(());
        }
        let alive = match side {
            Side::Source => self.source.is_some(),
            Side::Destination => self.destination.is_some(),
        };
        if alive {
            host.table.finished(id, JobEnd::Done);
            self.do_storage(side)?;
        }
        self.former_owner_may_be_gone()
    }

    /// A source that has ended, or was killed, and has nothing in flight, has let go of the disk:
    /// the storage tells.
    pub(super) fn former_owner_may_be_gone(&mut self) -> Result<(), Violation> {
        let gone = self.source.is_none() || self.outcome == Some(Outcome::Completed);
        let owner = self.rights.active[1] && self.destination.is_some();
        if gone && owner && self.storage.hosts[0].in_flight.is_empty() {
            self.lift_all_fences()?;
        }
        Ok(())
    }

    fn lift_all_fences(&mut self) -> Result<(), Violation> {
        let table = &mut self.storage.hosts[1].table;
        let fenced: Vec<JobId> = table.fences().keys().copied().collect();
        for id in fenced {
            table.settled(id, JobEnd::Unknown);
        }
        self.do_storage(Side::Destination)
    }

    /// Does what the table of `side` says.
    fn do_storage(&mut self, side: Side) -> Result<(), Violation> {
        let i = side.index();
        while let Some(action) = self.storage.hosts[i].table.poll() {
            match action {
                Action::Submit(id) => self.submit_storage(side, id)?,
                Action::Cancel(id) => {
                    let host = &mut self.storage.hosts[i];
                    if self.s.jobs.get(id.0 as usize).is_some_and(|j| j.cancels)
                        && host.in_flight.remove(&id).is_some()
                    {
                        host.table.finished(id, JobEnd::Cancelled);
                    }
                }
                Action::Complete { id, adopted, .. } => {
                    *self.storage.told.entry(id).or_default() += 1;
                    if self.storage.told[&id] > 1 {
                        return Err(Violation::Storage(format!("{id:?} is completed twice")));
                    }
                    if adopted {
                        let event = DestinationEvent::JobsCompleted(vec![key(id)]);
                        self.after(Duration::ZERO, Next::Destination(event));
                    }
                }
                Action::Settled { id, end } => {
                    let key = key(id);
                    let event = SourceEvent::IoSettled(vec![Settlement { key, end }]);
                    self.after(Duration::ZERO, Next::Source(event));
                }
            }
        }
        Ok(())
    }

    fn submit_storage(&mut self, side: Side, id: JobId) -> Result<(), Violation> {
        let i = side.index();
        let Some((kind, extent, ())) = self.storage.hosts[i].table.job(id) else {
            return Err(Violation::Storage(format!("{id:?} is no job")));
        };
        if side == Side::Destination {
            let late = self.storage.hosts[0]
                .in_flight
                .iter()
                .find(|(_, (kind, other))| kind.changes_disk() && other.overlaps(&extent));
            if let Some((late, _)) = late {
                return Err(Violation::Storage(format!(
                    "{id:?} is issued at the destination while the source's {late:?} may land on it"
                )));
            }
        }
        let takes = match side {
            Side::Source => self.s.jobs.get(id.0 as usize).map_or(REISSUE, |j| j.takes),
            Side::Destination => REISSUE,
        };
        self.storage.hosts[i].in_flight.insert(id, (kind, extent));
        self.after(takes, Next::Storage { side, id });
        Ok(())
    }

    /// The migration is over; storage goes on.
    pub(super) fn finish_storage(&mut self) -> Result<(), Violation> {
        let queue = std::mem::take(&mut self.queue);
        for (_, next) in queue {
            if let Next::Storage { side, id } = next {
                self.storage_ends(side, id)?;
            }
        }
        Ok(())
    }

    /// The guest lives on and nothing more happens: it has been told of every job.
    pub(super) fn storage_at_rest(&self) -> Result<(), Violation> {
        let lives = [self.source.is_some(), self.destination.is_some()];
        let undecided = matches!(self.outcome, Some(Outcome::Undecided { .. }));
        let here = (0..2).any(|i| lives[i] && self.rights.active[i]);
        let untold = self.storage.told.iter().find(|(_, n)| **n != 1);
        match untold {
            Some((id, _)) if here && !undecided => Err(Violation::Storage(format!(
                "the guest has not been told of {id:?}"
            ))),
            _ => Ok(()),
        }
    }
}
