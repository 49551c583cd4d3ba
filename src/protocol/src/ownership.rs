//! Who may run the guest: records on disk, and what they mean after a crash.
//!
//! Exactly one side may run the guest, whatever dies when. The source gives the right up by
//! [`Record::Relinquished`], the destination takes it by [`Record::Owner`], and never before it
//! has been told that the former is on disk. A record is on disk before anything that depends on
//! it is said: [`Persist`] makes that a type.

use serde::{Deserialize, Serialize};

use crate::ids::MigrationId;
use crate::storage::{Fate, JobKey, JobRecord, Settlement};

/// One step of a migration, as kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Record {
    /// Destination: state and memory are complete and checked.
    Prepared(MigrationId),
    /// Source: it will never again resume the guest by itself.
    Relinquished(MigrationId),
    /// Destination: the guest is its own.
    Owner(MigrationId),
    /// Source: the destination has confirmed; the guest is gone from here.
    Released(MigrationId),
    /// Destination: discarded; it never became owner.
    Discarded(MigrationId),
    /// A storage job that goes with the guest; at the source only where it is unsettled. Written
    /// together with the record that it is a part of, before it.
    Handed(MigrationId, JobRecord),
    /// An unsettled storage job will not change the disk any more.
    Settled(MigrationId, Settlement),
    /// Destination: the guest has been told how a storage job ended.
    Completed(MigrationId, JobKey),
    /// Source, after `Relinquished`: the destination has not become owner and never will, as it was
    /// not told, or as an operator vouches; the guest is here again.
    Reclaimed(MigrationId),
}

impl Record {
    /// The migration it belongs to.
    #[must_use]
    pub const fn migration(&self) -> MigrationId {
        match self {
            Self::Prepared(m)
            | Self::Relinquished(m)
            | Self::Owner(m)
            | Self::Released(m)
            | Self::Discarded(m)
            | Self::Reclaimed(m)
            | Self::Handed(m, _)
            | Self::Settled(m, _)
            | Self::Completed(m, _) => *m,
        }
    }
}

/// Records that must be on disk, all of them or none, before the core goes on. The only way to
/// tell the core so is a [`Stored`], and the only way to a `Stored` is a store function that has
/// succeeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Persist(Vec<Record>);

/// Proof that records are on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored(Vec<Record>);

impl Persist {
    pub(crate) fn new(record: Record) -> Self {
        Self(vec![record])
    }

    /// The last of `records` is the one that counts.
    pub(crate) fn all(records: Vec<Record>) -> Self {
        Self(records)
    }

    /// What is to be stored, in this order.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.0
    }

    /// Stores the records by `store`, which returns only when they are durable.
    ///
    /// # Errors
    /// That of `store`.
    pub fn store<E>(self, store: impl FnOnce(&[Record]) -> Result<(), E>) -> Result<Stored, E> {
        store(&self.0)?;
        Ok(Stored(self.0))
    }
}

impl Stored {
    /// The last one, which the others belong to.
    pub(crate) fn record(&self) -> Option<&Record> {
        self.0.last()
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.0
    }
}

/// Storage jobs of former owners that may still change this host's disks, as the records of a
/// destination tell: whoever opens such a disk keeps off their ranges until they are settled.
#[must_use]
pub fn open_fences(records: &[Record]) -> Vec<(MigrationId, JobRecord)> {
    let mut open: Vec<(MigrationId, JobRecord)> = Vec::new();
    for record in records {
        match record {
            Record::Handed(m, job) if job.fate == Fate::Unsettled => open.push((*m, *job)),
            Record::Settled(m, Settlement { key, .. }) | Record::Completed(m, key) => {
                open.retain(|(migration, job)| (migration, &job.key) != (m, key));
            }
            Record::Discarded(m) => open.retain(|(migration, _)| migration != m),
            _ => {}
        }
    }
    // The disks of a migration that never came to own them are another host's.
    open.retain(|(m, _)| recover(Role::Destination, *m, records) != Recovery::Drop);
    open
}

/// The role a host played in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest was here.
    Source,
    /// The guest was to come here.
    Destination,
}

/// What a host that finds these records after a crash may do with its copy of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Run it: the right to run is here.
    Run,
    /// Keep it paused and ask the peer: it may have been given away, or be about to come.
    AskPeer,
    /// Drop it: the right to run is certainly elsewhere.
    Drop,
}

/// What the records of one migration mean after a crash. Pure; records of other migrations are
/// ignored.
#[must_use]
pub fn recover(role: Role, migration: MigrationId, records: &[Record]) -> Recovery {
    let mut here = match role {
        Role::Source => Recovery::Run,
        Role::Destination => Recovery::Drop,
    };
    for record in records.iter().filter(|r| r.migration() == migration) {
        here = match (role, record) {
            (Role::Source, Record::Relinquished(_)) => Recovery::AskPeer,
            (Role::Source, Record::Released(_)) => Recovery::Drop,
            (Role::Source, Record::Reclaimed(_)) => Recovery::Run,
            (Role::Destination, Record::Prepared(_)) => Recovery::AskPeer,
            (Role::Destination, Record::Owner(_)) => Recovery::Run,
            (Role::Destination, Record::Discarded(_)) => Recovery::Drop,
            _ => here,
        };
    }
    here
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MigrationId = MigrationId([1; 16]);

    #[test]
    fn every_prefix_of_records_has_one_meaning() {
        let source = [Record::Relinquished(M), Record::Released(M)];
        let at = |n: usize| recover(Role::Source, M, &source[..n]);
        assert_eq!(at(0), Recovery::Run);
        assert_eq!(at(1), Recovery::AskPeer);
        assert_eq!(at(2), Recovery::Drop);
        let reclaimed = [Record::Relinquished(M), Record::Reclaimed(M)];
        assert_eq!(recover(Role::Source, M, &reclaimed), Recovery::Run);
        let destination = [Record::Prepared(M), Record::Owner(M)];
        let at = |n: usize| recover(Role::Destination, M, &destination[..n]);
        assert_eq!(at(0), Recovery::Drop);
        assert_eq!(at(1), Recovery::AskPeer);
        assert_eq!(at(2), Recovery::Run);
        let aborted = [Record::Prepared(M), Record::Discarded(M)];
        assert_eq!(recover(Role::Destination, M, &aborted), Recovery::Drop);
    }

    #[test]
    fn no_pair_of_crashes_lets_both_sides_run() {
        // In time order: what is on both disks at each moment of a migration that completes.
        let steps = [
            (Role::Destination, Record::Prepared(M)),
            (Role::Source, Record::Relinquished(M)),
            (Role::Destination, Record::Owner(M)),
            (Role::Source, Record::Released(M)),
        ];
        for n in 0..=steps.len() {
            let of = |role| -> Vec<Record> {
                let mine = steps[..n].iter().filter(|(r, _)| *r == role);
                mine.map(|(_, record)| *record).collect()
            };
            let source = recover(Role::Source, M, &of(Role::Source));
            let destination = recover(Role::Destination, M, &of(Role::Destination));
            assert!(
                source != Recovery::Run || destination != Recovery::Run,
                "step {n}"
            );
        }
    }

    #[test]
    fn records_of_other_migrations_mean_nothing() {
        let other = [Record::Relinquished(MigrationId([2; 16]))];
        assert_eq!(recover(Role::Source, M, &other), Recovery::Run);
    }

    #[test]
    fn a_failed_store_gives_no_proof() {
        let persist = Persist::new(Record::Owner(M));
        assert_eq!(persist.store(|_| Err("disk full")), Err("disk full"));
    }

    #[test]
    fn fences_stand_from_the_handover_until_their_jobs_are_settled_or_completed() {
        use crate::storage::{Extent, JobEnd, JobId, JobKind};
        let key = |job| JobKey {
            disk: 1,
            job: JobId(job),
        };
        let handed = |job, fate| {
            let record = JobRecord {
                key: key(job),
                kind: JobKind::Write,
                extent: Extent::new(job * 4096, 4096),
                fate,
            };
            Record::Handed(M, record)
        };
        let settled = |job| {
            let (key, end) = (key(job), JobEnd::Done);
            Record::Settled(M, Settlement { key, end })
        };
        let mut records = vec![
            handed(0, Fate::Cancelled),
            handed(1, Fate::Unsettled),
            handed(2, Fate::Unsettled),
            handed(3, Fate::Unsettled),
        ];
        let open = |records: &[Record]| -> Vec<u64> {
            let open = open_fences(records);
            open.iter().map(|(_, job)| job.key.job.0).collect()
        };
        assert_eq!(open(&records), [0; 0]);
        records.push(Record::Prepared(M));
        assert_eq!(open(&records), [1, 2, 3]);
        records.extend([Record::Owner(M), settled(2), Record::Completed(M, key(1))]);
        assert_eq!(open(&records), [3]);
        records.push(settled(3));
        assert_eq!(open(&records), [0; 0]);
        let discarded = [
            handed(1, Fate::Unsettled),
            Record::Prepared(M),
            Record::Discarded(M),
        ];
        assert_eq!(open(&discarded), [0; 0]);
    }
}
