//! What storage has still to do for a machine that has left: the VM processes tell each other by
//! themselves; where they cannot, the two services do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use vmferry_protocol::storage::{JobEnd, JobId, JobKey, Settlement};
use vmferry_vmm::api::{Answer, Request};

use super::{Inner, Result, lock, vms};
use crate::api::check::MAX_SETTLED;
use crate::control::ControlError;
use crate::model::{
    Direction, JobName, KnownJobs, Migration, MigrationState, SettledEnd, SettledJob, SettledJobs,
};

/// How often is looked for jobs that have ended and that the other side does not know of. Between
/// VM processes that reach each other it takes milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one migration may hold up the others.
const ASK_WITHIN: Duration = Duration::from_secs(5);

impl From<&JobKey> for JobName {
    fn from(key: &JobKey) -> Self {
        Self {
            disk: key.disk,
            job: key.job.0,
        }
    }
}

impl From<&JobName> for JobKey {
    fn from(name: &JobName) -> Self {
        Self {
            disk: name.disk,
            job: JobId(name.job),
        }
    }
}

impl From<&Settlement> for SettledJob {
    fn from(settlement: &Settlement) -> Self {
        Self {
            key: JobName::from(&settlement.key),
            end: match settlement.end {
                JobEnd::Done => SettledEnd::Done,
                JobEnd::Failed(errno) => SettledEnd::Failed(errno),
                JobEnd::Cancelled => SettledEnd::Cancelled,
                JobEnd::Unknown => SettledEnd::Unknown,
            },
        }
    }
}

impl From<&SettledJob> for Settlement {
    fn from(job: &SettledJob) -> Self {
        Self {
            key: JobKey::from(&job.key),
            end: match job.end {
                SettledEnd::Done => JobEnd::Done,
                SettledEnd::Failed(errno) => JobEnd::Failed(errno),
                SettledEnd::Cancelled => JobEnd::Cancelled,
                SettledEnd::Unknown => JobEnd::Unknown,
            },
        }
    }
}

/// Carries what has ended here to the hosts that wait for it.
pub(super) async fn carry(inner: Arc<Inner>) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let settling: Vec<Migration> = {
            let all = lock(&inner.migrations).list().into_iter();
            let ours = |m: &Migration| {
                m.direction == Direction::Outgoing && m.state == MigrationState::Settling
            };
            all.filter(ours).collect()
        };
        for migration in settling {
            // It is tried again soon.
            match timeout(ASK_WITHIN, inner.carry_settled(&migration)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(id = migration.id, %error, "what has settled is not told");
                }
                Err(_) => tracing::debug!(id = migration.id, "what has settled is not told yet"),
            }
        }
    }
}

impl Inner {
    async fn carry_settled(&self, migration: &Migration) -> Result<()> {
        let client = self.entry(&migration.vm)?.client()?;
        let answer = client.call(Request::Unconfirmed).await;
        let settlements = match answer.map_err(|e| vms::refused(&e))? {
            Answer::Unconfirmed(settlements) if !settlements.is_empty() => settlements,
            _ => return Ok(()),
        };
        let settled = SettledJobs {
            migration: migration.id.clone(),
            jobs: settlements
                .iter()
                .take(MAX_SETTLED)
                .map(SettledJob::from)
                .collect(),
        };
        let known = self.peer(&migration.peer)?.told_settled(settled).await?;
        if known.jobs.is_empty() {
            return Ok(());
        }
        tracing::info!(
            id = migration.id,
            jobs = known.jobs.len(),
            "{} was told by the host service which writes have ended",
            migration.peer
        );
        let keys = known.jobs.iter().map(JobKey::from).collect();
        let told = client.call(Request::SettledThere { keys }).await;
        told.map(drop).map_err(|e| vms::refused(&e))
    }

    /// Storage jobs of a machine that came here have ended at its former host.
    pub(super) async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs> {
        let migration = self.migration(&settled.migration)?;
        if migration.direction != Direction::Incoming {
            return Err(ControlError::Invalid(format!(
                "migration {} left from here: nothing of it is waited for",
                migration.id
            )));
        }
        let client = self.entry(&migration.vm)?.client()?;
        let request = Request::ToldSettled {
            migration: migration.id,
            settlements: settled.jobs.iter().map(Settlement::from).collect(),
        };
        match client.call(request).await {
            Ok(Answer::Known { keys }) => Ok(KnownJobs {
                jobs: keys.iter().map(JobName::from).collect(),
            }),
            Ok(_) => Err(ControlError::Failed("an unknown answer".to_owned())),
            Err(e) => Err(vms::refused(&e)),
        }
    }
}
