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
                 ended: find out on the other host whether it runs there; if it does not, and \
                 never will, start this VM in a new directory"
            ));
        }
    }
    Ok(open_fences(records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_protocol::storage::{Extent, Fate, JobId, JobKey, JobKind};

    const M: MigrationId = MigrationId([1; 16]);

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
    fn a_guest_that_is_here_finds_the_fences_that_are_open() {
        assert_eq!(fences(&[]), Ok(Vec::new()));
        let here = [handed(), Record::Prepared(M), Record::Owner(M)];
        assert_eq!(fences(&here).map(|f| f.len()), Ok(1));
        let released = [handed(), Record::Relinquished(M), Record::Released(M)];
        assert_eq!(fences(&released), Ok(Vec::new()));
    }
}
