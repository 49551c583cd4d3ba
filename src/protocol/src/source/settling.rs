//! The source after the handover: it tells which of its unsettled storage jobs are settled, until
//! the destination has that on disk. The guest already runs there.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Time;
use crate::ownership::{Persist, Record};
use crate::storage::{Fate, JobKey, JobRecord, MAX_JOBS, Settlement};

use super::{AbortCode, Message, Source, SourceOutput, State, backoff};

/// Most settlements in one message.
const A_MESSAGE: usize = 1024;

/// Storage jobs that this side has handed over.
#[derive(Debug, Default)]
pub(super) struct HandedOver {
    /// All of them, as cancelled.
    pub(super) jobs: Vec<JobRecord>,
    /// Those that may still change a disk.
    open: BTreeSet<JobKey>,
    /// Those that will not any more, as far as the destination has yet to confirm that.
    settled: BTreeMap<JobKey, Settlement>,
    /// Of these, the ones told on this connection.
    told: BTreeSet<JobKey>,
    /// Those that have ended before it was heard which were handed over.
    early: Vec<Settlement>,
}

impl HandedOver {
    pub(super) fn new(jobs: Vec<JobRecord>) -> Self {
        let unsettled = jobs.iter().filter(|j| j.fate == Fate::Unsettled);
        Self {
            open: unsettled.map(|j| j.key).collect(),
            jobs,
            ..Self::default()
        }
    }

    /// Jobs that have yet to be settled and confirmed.
    pub(super) fn left(&self) -> u64 {
        (self.open.len() + self.settled.len()) as u64
    }

    fn settle(&mut self, settlement: Settlement) {
        if self.open.remove(&settlement.key) {
            self.settled.insert(settlement.key, settlement);
        }
    }

    fn confirm(&mut self, keys: &[JobKey]) {
        for key in keys {
            self.settled.remove(key);
            self.told.remove(key);
        }
    }

    /// A new connection: whatever was told on the last one may not have arrived.
    fn forget_told(&mut self) {
        self.told.clear();
    }

    fn untold(&mut self) -> Vec<Settlement> {
        let untold = self
            .settled
            .iter()
            .filter(|(key, _)| !self.told.contains(key));
        let untold: Vec<Settlement> = untold.map(|(_, s)| *s).take(A_MESSAGE).collect();
        self.told.extend(untold.iter().map(|s| s.key));
        untold
    }
}

impl Source {
    pub(super) fn io_cancelled(&mut self, now: Time, jobs: Vec<JobRecord>) {
        if jobs.len() > MAX_JOBS {
            let detail = format!("{} storage jobs are in flight: too many", jobs.len());
            return self.fail(now, AbortCode::Failed, detail);
        }
        self.stats.timeline.io_cancelled = now;
        let early = std::mem::take(&mut self.handed_over.early);
        self.handed_over = HandedOver::new(jobs);
        for settlement in early {
            self.handed_over.settle(settlement);
        }
        self.state = State::SavingVm;
        self.outputs.push_back(SourceOutput::SaveState);
    }

    /// `relinquished`, with what must be known here of the guest's storage after a crash.
    pub(super) fn relinquish(&mut self) {
        let migration = self.config.migration;
        let jobs = self.handed_over.jobs.iter();
        let unsettled = jobs.filter(|j| j.fate == Fate::Unsettled);
        let mut records: Vec<Record> = unsettled.map(|j| Record::Handed(migration, *j)).collect();
        records.push(Record::Relinquished(migration));
        self.outputs
            .push_back(SourceOutput::Persist(Persist::all(records)));
    }

    pub(super) fn io_settled(&mut self, settlements: Vec<Settlement>) {
        // Disks and whoever holds them are different threads: one may be quicker than the other.
        if self.state == State::CancellingIo {
            return self.handed_over.early.extend(settlements);
        }
        for settlement in settlements {
            self.handed_over.settle(settlement);
        }
        // Before the commit the destination does not listen to this.
        if matches!(
            self.state,
            State::Settling {
                connected: true,
                ..
            }
        ) {
            self.tell_settled();
        }
    }

    pub(super) fn tell_settled(&mut self) {
        loop {
            let settlements = self.handed_over.untold();
            if settlements.is_empty() {
                return;
            }
            self.send(Message::Settled { settlements });
        }
    }

    /// A connection of the handover stands (again): what is known goes before the commit, so that
    /// nothing waits for quick storage.
    pub(super) fn tell_all_settled(&mut self) {
        self.handed_over.forget_told();
        self.tell_settled();
    }

    /// Settled jobs of which the destination has not confirmed that it knows, for whoever can tell
    /// it by another way than the control stream; it is told on that as well.
    #[must_use]
    pub fn unconfirmed(&self) -> Vec<Settlement> {
        match self.state {
            State::Settling { .. } => self.handed_over.settled.values().copied().collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn settled_there(&mut self, keys: &[JobKey]) {
        self.handed_over.confirm(keys);
        if matches!(self.state, State::Settling { .. }) {
            self.release_if_settled();
        }
    }

    /// The guest runs there; what is left is this host's storage jobs.
    pub(super) fn settle(&mut self, now: Time) {
        self.state = State::Settling {
            connected: self.connected,
            attempts: 0,
            lost: now,
        };
        self.tell_settled();
        self.release_if_settled();
    }

    fn release_if_settled(&mut self) {
        if self.handed_over.left() == 0 {
            self.release();
        }
    }

    fn release(&mut self) {
        self.state = State::Releasing;
        let record = Record::Released(self.config.migration);
        self.outputs
            .push_back(SourceOutput::Persist(Persist::new(record)));
    }

    /// While jobs are in flight nobody gives up: the destination can learn from this side what
    /// nobody else knows. When all have ended, a destination that cannot be reached any more has
    /// ended too, or learns it from the storage.
    pub(super) fn settling_ends_at(&self) -> Option<Time> {
        match self.state {
            State::Settling {
                connected: false,
                lost,
                ..
            } if self.handed_over.open.is_empty() => Some(lost + self.config.reconnect_for),
            _ => None,
        }
    }

    pub(super) fn end_settling_at(&mut self, now: Time) {
        if self.settling_ends_at().is_some_and(|at| now >= at) {
            self.release();
        }
    }

    pub(super) fn settling_connection_lost(&mut self, now: Time) {
        if let State::Settling {
            connected,
            attempts,
            lost,
        } = &mut self.state
        {
            if *connected {
                (*attempts, *lost) = (0, now);
            }
            *connected = false;
            *attempts += 1;
            let after = backoff(*attempts);
            self.outputs.push_back(SourceOutput::Reconnect { after });
        }
    }
}
