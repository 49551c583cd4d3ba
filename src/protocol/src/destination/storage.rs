//! The destination's part in the handover of storage jobs: it learns what is settled, and keeps
//! the journal true until every job that came has completed here.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ids::{MigrationId, Time};
use crate::message::Message;
use crate::ownership::{Persist, Record};
use crate::storage::{Fate, JobEnd, JobKey, JobRecord, Settlement};

use super::{Destination, DestinationOutcome, DestinationOutput, PERSIST_AGAIN, State};

/// Most keys in one message.
const A_MESSAGE: usize = 1024;

/// Storage jobs that came with the guest.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    pub(super) jobs: Vec<JobRecord>,
    /// Jobs of whose end the guest has yet to be told.
    open: BTreeSet<JobKey>,
    /// Unsettled jobs.
    fences: BTreeSet<JobKey>,
    /// What is to be put on disk next, and what is being put there.
    unwritten: Vec<Record>,
    writing: Vec<Record>,
}

impl Adopted {
    pub(super) fn new(jobs: Vec<JobRecord>) -> Self {
        Self {
            open: jobs.iter().map(|j| j.key).collect(),
            fences: jobs
                .iter()
                .filter(|j| j.fate == Fate::Unsettled)
                .map(|j| j.key)
                .collect(),
            jobs,
            ..Self::default()
        }
    }

    fn is_over(&self) -> bool {
        self.open.is_empty() && self.unwritten.is_empty() && self.writing.is_empty()
    }
}

impl Destination {
    /// Storage jobs that came with the guest and of whose end it has yet to be told.
    #[must_use]
    pub fn jobs_open(&self) -> u64 {
        self.adopted.open.len() as u64
    }

    /// `prepared`, with the jobs that come with the guest.
    pub(super) fn persist_prepared(&mut self, migration: MigrationId) {
        let jobs = self.adopted.jobs.iter();
        let mut records: Vec<Record> = jobs.map(|j| Record::Handed(migration, *j)).collect();
        records.push(Record::Prepared(migration));
        let persist = Persist::all(records);
        self.outputs.push_back(DestinationOutput::Persist(persist));
    }

    /// Unsettled jobs of the source are settled. Fences are lifted at once; that it is on disk is
    /// confirmed later, so no flush comes into the blackout.
    pub(super) fn told_settled(&mut self, now: Time, settlements: Vec<Settlement>) {
        let Some(migration) = self.migration else {
            return;
        };
        let records = settlements.iter().map(|s| Record::Settled(migration, *s));
        self.adopted.unwritten.extend(records);
        for settlement in &settlements {
            let last = self.adopted.fences.remove(&settlement.key);
            if last && self.adopted.fences.is_empty() {
                self.timeline.fences_lifted = now;
            }
        }
        self.outputs
            .push_back(DestinationOutput::Settle(settlements));
        self.write_next();
    }

    /// The source tells by another way than the control stream what is settled. Returns the jobs
    /// of which that is on disk here, so that it need not be told again; for the others it asks
    /// again.
    ///
    /// # Errors
    /// In words: the guest is not this host's.
    pub fn told_otherwise(
        &mut self,
        now: Time,
        settlements: &[Settlement],
    ) -> Result<Vec<JobKey>, &'static str> {
        if !matches!(self.state, State::Owner { .. }) {
            return Err("the guest is not this host's yet, or not any more");
        }
        let handed = |s: &&Settlement| {
            let same = |j: &&JobRecord| j.key == s.key && j.fate == Fate::Unsettled;
            self.adopted.jobs.iter().any(|j| same(&j))
        };
        let (news, known): (Vec<Settlement>, Vec<Settlement>) = settlements
            .iter()
            .filter(handed)
            .partition(|s| self.adopted.fences.contains(&s.key));
        if !news.is_empty() {
            self.told_settled(now, news);
        }
        let adopted = &self.adopted;
        let on_its_way = |key: JobKey| {
            let records = adopted.unwritten.iter().chain(&adopted.writing);
            let mut settled = records.filter_map(|record| match record {
                Record::Settled(_, settlement) => Some(settlement.key),
                _ => None,
            });
            settled.any(|other| other == key)
        };
        let keys = known.iter().map(|s| s.key);
        Ok(keys.filter(|key| !on_its_way(*key)).collect())
    }

    /// An operator vouches that the source's host will write to the guest's disks no more: every
    /// job that is still open counts as settled. Returns how many.
    ///
    /// # Errors
    /// In words, where that is nobody's to say: the source is there and will tell, or the guest is
    /// not this host's.
    pub fn settled_by_operator(&mut self, now: Time) -> Result<u64, &'static str> {
        if !matches!(self.state, State::Owner { .. }) {
            return Err("the guest is not this host's yet, or not any more");
        }
        if self.connected && self.joined {
            return Err(
                "the source is connected and tells when its writes are settled: wait for it; if its \
                 storage hangs for ever, end the VM process there first",
            );
        }
        let adopted = &self.adopted;
        let open = adopted
            .jobs
            .iter()
            .filter(|j| j.fate == Fate::Unsettled && adopted.open.contains(&j.key));
        let settled = open.map(|job| Settlement {
            key: job.key,
            end: JobEnd::Unknown,
        });
        let settled: Vec<Settlement> = settled.collect();
        let count = settled.len() as u64;
        self.told_settled(now, settled);
        Ok(count)
    }

    /// The guest has been told how these jobs ended.
    pub(super) fn jobs_completed(&mut self, now: Time, keys: &[JobKey]) {
        let Some(migration) = self.migration else {
            return;
        };
        for key in keys {
            if self.adopted.open.remove(key) {
                let record = Record::Completed(migration, *key);
                self.adopted.unwritten.push(record);
                if self.adopted.open.is_empty() {
                    self.timeline.jobs_ended = now;
                }
            }
        }
        self.write_next();
        self.finish_if_over();
    }

    /// Puts on disk what has come together, one lot after another; not before the guest runs.
    pub(super) fn write_next(&mut self) {
        let adopted = &mut self.adopted;
        let owner = matches!(self.state, State::Owner { .. });
        if owner && adopted.writing.is_empty() && !adopted.unwritten.is_empty() {
            adopted.writing = std::mem::take(&mut adopted.unwritten);
            let persist = Persist::all(adopted.writing.clone());
            self.outputs.push_back(DestinationOutput::Persist(persist));
        }
    }

    /// A lot is on disk: the source is told what it has to know no longer.
    pub(super) fn jobs_written(&mut self, records: &[Record]) {
        self.adopted.writing.clear();
        let settled = records.iter().filter_map(|record| match record {
            Record::Settled(_, settlement) => Some(settlement.key),
            _ => None,
        });
        let settled: Vec<JobKey> = settled.collect();
        for jobs in settled.chunks(A_MESSAGE) {
            let jobs = jobs.to_vec();
            self.send(Message::SettledAck { jobs });
        }
        self.write_next();
        self.finish_if_over();
    }

    /// It is not, and nothing depends on when it is.
    pub(super) fn jobs_not_written(&mut self) {
        if !self.adopted.writing.is_empty() {
            self.outputs.push_back(DestinationOutput::PersistLater {
                persist: Persist::all(self.adopted.writing.clone()),
                after: PERSIST_AGAIN,
            });
        }
    }

    /// Whether this side waits for nothing but time, or the source's farewell.
    pub(super) fn lingers_until(&self) -> Option<Time> {
        match self.state {
            State::Owner { until, .. } if self.adopted.is_over() => Some(until),
            _ => None,
        }
    }

    pub(super) fn linger(&mut self, now: Time) {
        let until = now + self.config.linger;
        self.state = State::Owner { until, bye: false };
    }

    pub(super) fn source_said_bye(&mut self) {
        if let State::Owner { bye, .. } = &mut self.state {
            *bye = true;
        }
        self.finish_if_over();
    }

    fn finish_if_over(&mut self) {
        if matches!(self.state, State::Owner { bye: true, .. }) && self.adopted.is_over() {
            self.finish(DestinationOutcome::Completed);
        }
    }
}

pub(super) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
