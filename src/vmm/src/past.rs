//! What the journal says of the past: whether a guest may be booted here, and which ranges of its
//! disks may still be written by somebody else.

use std::collections::BTreeSet;

use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Record, Recovery, Role, open_fences, recover};
use vmferry_protocol::storage::JobRecord;

/// Storage jobs of former owners that have not been settled: each keeps its range closed.
///
/// # Errors
/// In words, where the guest of this VM may run on another host: booting it here would be a
/// second one on the same disks.
pub(crate) fn fences(records: &[Record]) -> Result<Vec<(MigrationId, JobRecord)>, String> {
    let migrations: BTreeSet<MigrationId> = records.iter().map(Record::migration).collect();
    for migration in migrations {
        let left = |r: &&Record| matches!(r, Record::Relinquished(m) if *m == migration);
        let (role, why) = match records.iter().find(left) {
            Some(_) => (Role::Source, "was handed over to another host"),
            None => (Role::Destination, "was about to come here"),
        };
        if recover(role, migration, records) == Recovery::AskPeer {
            return Err(format!(
                "the guest {why} in migration {migration}, and the journal does not say how that \
                 ended: find out on the other host whether it runs there, and decide"
            ));
        }
    }
    if let Whereabouts::Left(migration) = whereabouts(records) {
        return Err(format!(
            "the guest runs on another host since migration {migration}: it cannot run here as well"
        ));
    }
    Ok(open_fences(records))
}

/// Where the guest of a VM's directory may run, as its journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// Here, as far as the journal knows: it was never given away, or it has come.
    Here,
    /// At the destination of this migration, which has confirmed.
    Left(MigrationId),
    /// Here or at the other host of this migration: an operator has to find out.
    Undecided(MigrationId),
    /// It was to come by this migration, and did not.
    NeverCame(MigrationId),
}

/// Reads the records of a VM's directory whose process is gone. A directory that was made for a
/// guest to come, and in which nothing was noted, reads as [`Whereabouts::Here`]: that is for
/// whoever made it to know.
#[must_use]
pub fn whereabouts(records: &[Record]) -> Whereabouts {
    let step = |record: &Record| match *record {
        Record::Owner(_) | Record::Reclaimed(_) => Some(Whereabouts::Here),
        Record::Released(m) => Some(Whereabouts::Left(m)),
        Record::Relinquished(m) | Record::Prepared(m) => Some(Whereabouts::Undecided(m)),
        Record::Discarded(m) => Some(Whereabouts::NeverCame(m)),
        Record::Handed(..) | Record::Settled(..) | Record::Completed(..) => None,
    };
    let last = records.iter().rev().find_map(step);
    last.unwrap_or(Whereabouts::Here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_protocol::storage::{Extent, Fate, JobId, JobKey, JobKind};

    const M: MigrationId = MigrationId([1; 16]);
    const N: MigrationId = MigrationId([2; 16]);

    fn handed() -> Record {
        let key = JobKey {
            disk: 0,
            job: JobId(7),
        };
        let record = JobRecord {
            key,
            kind: JobKind::Write,
            extent: Extent::new(0, 512),
            fate: Fate::Unsettled,
        };
        Record::Handed(M, record)
    }

    #[test]
    fn a_guest_that_may_run_elsewhere_is_not_booted() {
        let gone = [handed(), Record::Relinquished(M)];
        assert!(fences(&gone).unwrap_err().contains("handed over"));
        let coming = [handed(), Record::Prepared(M)];
        assert!(fences(&coming).unwrap_err().contains("was about to come"));
    }

    #[test]
    fn the_last_step_says_where_the_guest_may_run() {
        let came = [handed(), Record::Prepared(M), Record::Owner(M)];
        let mut records = Vec::new();
        let mut after = |record: Record| {
            records.push(record);
            whereabouts(&records)
        };
        assert_eq!(after(came[0]), Whereabouts::Here);
        assert_eq!(after(came[1]), Whereabouts::Undecided(M));
        assert_eq!(after(came[2]), Whereabouts::Here);
        assert_eq!(after(Record::Relinquished(N)), Whereabouts::Undecided(N));
        assert_eq!(after(Record::Released(N)), Whereabouts::Left(N));
        assert_eq!(after(Record::Relinquished(M)), Whereabouts::Undecided(M));
        assert_eq!(after(Record::Reclaimed(M)), Whereabouts::Here);
        let not = [Record::Prepared(M), Record::Discarded(M)];
        assert_eq!(whereabouts(&not), Whereabouts::NeverCame(M));
    }

    #[test]
    fn one_that_an_operator_has_kept_is_booted() {
        assert!(fences(&[Record::Relinquished(M), Record::Reclaimed(M)]).is_ok());
        assert!(fences(&[Record::Prepared(M), Record::Owner(M)]).is_ok());
    }

    #[test]
    fn a_guest_that_is_here_finds_the_fences_that_are_open() {
        assert_eq!(fences(&[]), Ok(Vec::new()));
        let here = [handed(), Record::Prepared(M), Record::Owner(M)];
        assert_eq!(fences(&here).map(|f| f.len()), Ok(1));
        let released = [handed(), Record::Relinquished(M), Record::Released(M)];
        assert!(fences(&released).unwrap_err().contains("another host"));
        // It has come back since.
        let back = [&released[..], &[Record::Prepared(N), Record::Owner(N)]].concat();
        assert_eq!(fences(&back), Ok(Vec::new()));
    }
}
