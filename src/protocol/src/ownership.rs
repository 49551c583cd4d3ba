//! Who may run the guest: records on disk, and what they mean after a crash.
//!
//! Exactly one side may run the guest, whatever dies when. The source gives the right up by
//! [`Record::Relinquished`], the destination takes it by [`Record::Owner`], and never before it
//! has been told that the former is on disk. A record is on disk before anything that depends on
//! it is said: [`Persist`] makes that a type.

use serde::{Deserialize, Serialize};

use crate::ids::MigrationId;

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
            | Self::Discarded(m) => *m,
        }
    }
}

/// A record that must be on disk before the core goes on. The only way to tell the core so is a
/// [`Stored`], and the only way to a `Stored` is a store function that has succeeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Persist(Record);

/// Proof that a record is on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored(Record);

impl Persist {
    pub(crate) const fn new(record: Record) -> Self {
        Self(record)
    }

    /// What is to be stored.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.0
    }

    /// Stores the record by `store`, which returns only when it is durable.
    ///
    /// # Errors
    /// That of `store`.
    pub fn store<E>(self, store: impl FnOnce(&Record) -> Result<(), E>) -> Result<Stored, E> {
        store(&self.0)?;
        Ok(Stored(self.0))
    }
}

impl Stored {
    pub(crate) const fn record(&self) -> &Record {
        &self.0
    }
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
}
