//! Writes of a former owner of the guest's disks: who says that they have ended, and what follows.

use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Record, open_fences};
use vmferry_protocol::storage::{JobEnd, JobRecord, Settlement};

use super::{Job, Reply, Vm};
use crate::api::Answer;

impl Vm {
    /// An operator vouches for writes of a former owner.
    pub(super) async fn settle_storage(&self) -> Reply {
        if let Job::Arriving(operator, _) = &self.job {
            let writes = operator.settle_storage().await?;
            return Ok(Answer::Settled { writes });
        }
        let records = self.journal.records().map_err(|e| chain(&e))?;
        let settled = |(migration, job): (MigrationId, JobRecord)| {
            let settlement = Settlement {
                key: job.key,
                end: JobEnd::Unknown,
            };
            (migration, settlement)
        };
        let settled: Vec<_> = open_fences(&records).into_iter().map(settled).collect();
        self.settle(&settled)?;
        let writes = settled.len() as u64;
        Ok(Answer::Settled { writes })
    }

    /// The host from which the guest came tells which of its jobs have ended, while the migration
    /// still waits for that, or when its process has ended since and the guest was booted anew.
    pub(super) async fn told_settled(
        &self,
        migration: &str,
        settlements: Vec<Settlement>,
    ) -> Reply {
        let migration: MigrationId = migration
            .parse()
            .map_err(|e| format!("migration id: {e}"))?;
        if let Job::Arriving(operator, id) = &self.job
            && id.as_ref().is_some_and(|id| *id == migration.to_string())
            && let Some(keys) = operator.told_settled(settlements.clone()).await?
        {
            return Ok(Answer::Known { keys });
        }
        let records = self.journal.records().map_err(|e| chain(&e))?;
        let handed = |s: &&Settlement| {
            let same =
                |r: &Record| matches!(r, Record::Handed(m, j) if *m == migration && j.key == s.key);
            records.iter().any(same)
        };
        let ours: Vec<Settlement> = settlements.iter().filter(handed).copied().collect();
        let open = open_fences(&records);
        let is_open = |s: &Settlement| open.iter().any(|(m, j)| *m == migration && j.key == s.key);
        let news = ours.iter().filter(|s| is_open(s)).map(|s| (migration, *s));
        self.settle(&news.collect::<Vec<_>>())?;
        let keys = ours.iter().map(|s| s.key).collect();
        Ok(Answer::Known { keys })
    }

    /// Notes that jobs of former owners have ended, and lifts their fences.
    fn settle(&self, settled: &[(MigrationId, Settlement)]) -> Result<(), String> {
        if settled.is_empty() {
            return Ok(());
        }
        let machine = self.the_machine()?;
        let records = settled
            .iter()
            .map(|(migration, s)| Record::Settled(*migration, *s));
        // On disk first: after a crash it must not be asked for again.
        let records: Vec<Record> = records.collect();
        self.journal.append(&records).map_err(|e| chain(&e))?;
        let settlements: Vec<Settlement> = settled.iter().map(|(_, s)| *s).collect();
        machine.disks().settle(&settlements);
        Ok(())
    }
}
