//! What is known of migrations, under way and over.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use vmferry_engine::report::{DestinationTimeline, MigrationReport, ReportOutcome};

use super::admission::Admission;
use super::{Inner, Result, lock, now_ms, store};
use crate::control::ControlError;
use crate::model::{Migration, MigrationOptions, MigrationState, ServiceEvent};
use crate::telemetry::PreflightTimes;

/// Files of a migration.
pub(super) const RECORD: &str = "migration.json";
pub(super) const REPORT: &str = "report.json";
pub(super) const TRACE: &str = "trace.json";

/// What is kept of a migration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) migration: Migration,
    /// As they are, defaults included.
    pub(super) options: MigrationOptions,
    /// The VM process was asked to begin it.
    #[serde(default)]
    pub(super) begun: bool,
    /// W3C trace context of whoever asked for it.
    #[serde(default)]
    pub(super) parent: Option<String>,
    /// When and with what result both hosts looked whether it could be.
    #[serde(default)]
    pub(super) preflight: Option<PreflightTimes>,
    /// How far the other host's clock is ahead, in milliseconds.
    #[serde(default)]
    pub(super) clock_ahead_ms: Option<f64>,
}

/// What a VM process tells of a migration that is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Account<'a> {
    /// Nothing: it had not begun, or the process died.
    None,
    /// The source's report.
    Source(&'a MigrationReport),
    /// When what happened at the destination.
    Destination(&'a DestinationTimeline),
}

/// A migration.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) kept: Kept,
    /// Becomes true when somebody cancels.
    pub(super) cancel: watch::Sender<bool>,
    /// The other host may still know of an earlier try.
    pub(super) again: bool,
    /// Its end is being noted.
    ended: bool,
}

impl Known {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            cancel: watch::Sender::new(false),
            again: false,
            ended: false,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) known: HashMap<String, Known>,
    pub(super) admission: Admission,
}

impl Registry {
    /// Newest first.
    pub(super) fn list(&self) -> Vec<Migration> {
        let all = self.known.values().map(|k| k.kept.migration.clone());
        let mut all: Vec<Migration> = all.collect();
        all.sort_by(|a, b| (b.asked_ms, &b.id).cmp(&(a.asked_ms, &a.id)));
        all
    }

    /// Whether a migration has not had its turn.
    pub(super) fn waits(&self, id: &str) -> bool {
        self.admission.waits(id)
    }

    /// Forgets the oldest of those that are over, where there are too many. Returns their ids.
    pub(super) fn prune(&mut self, remembered: usize) -> Vec<String> {
        if self.known.len() <= remembered {
            return Vec::new();
        }
        let over = self.list().into_iter().filter(|m| m.state.is_over());
        let old: Vec<String> = over.skip(remembered).map(|m| m.id).collect();
        for id in &old {
            self.known.remove(id);
        }
        old
    }
}

impl Inner {
    pub(super) fn migration(&self, id: &str) -> Result<Migration> {
        let found = lock(&self.migrations)
            .known
            .get(id)
            .map(|k| k.kept.migration.clone());
        found.ok_or_else(|| unknown(id))
    }

    /// Notes a new one.
    pub(super) fn remember(&self, registry: &mut Registry, known: Known) {
        let (kept, id) = (known.kept.clone(), known.kept.migration.id.clone());
        self.keep(&kept);
        registry.known.insert(id, known);
        self.tell(ServiceEvent::Migration(kept.migration));
    }

    /// Writes down what is kept. In the order of calls: only with the registry locked.
    fn keep(&self, kept: &Kept) {
        let path = self.store.migration(&kept.migration.id, RECORD);
        self.store.write_later(path, kept);
    }

    /// Changes one that is known. A state that has changed is written down.
    pub(super) fn update(&self, id: &str, f: impl FnOnce(&mut Migration)) {
        self.update_kept(id, |kept| f(&mut kept.migration));
    }

    /// The same, with what the API does not show.
    pub(super) fn update_kept(&self, id: &str, f: impl FnOnce(&mut Kept)) {
        let mut registry = lock(&self.migrations);
        let Some(known) = registry.known.get_mut(id) else {
            return;
        };
        let before = known.kept.clone();
        f(&mut known.kept);
        let after = &known.kept;
        if before.migration == after.migration && before.begun == after.begun {
            return;
        }
        let (was, is) = (&before.migration, &after.migration);
        if (was.state, &was.reason) != (is.state, &is.reason) || before.begun != after.begun {
            self.keep(after);
        }
        self.tell(ServiceEvent::Migration(after.migration.clone()));
    }

    /// A migration is over, as its VM process tells in `account`.
    pub(super) fn over(
        &self,
        id: &str,
        state: MigrationState,
        reason: Option<String>,
        account: Account<'_>,
    ) {
        let ended = {
            let mut registry = lock(&self.migrations);
            let known = registry.known.get_mut(id);
            let open = known.filter(|k| !k.ended && !k.kept.migration.state.is_over());
            open.map(|known| {
                known.ended = true;
                let mut kept = known.kept.clone();
                let m = &mut kept.migration;
                m.state = state;
                m.reason = reason;
                m.ended_ms = Some(now_ms());
                if let Account::Source(report) = account {
                    m.blackout_ms = report.blackout_ms;
                    m.total_ms = Some(report.total_ms);
                }
                kept
            })
        };
        if let Some(ended) = ended {
            // First its trace: whoever hears that it is over may ask for it.
            self.tell_world(&ended, account);
            self.update_kept(id, |kept| *kept = ended);
        }
        let old = {
            let mut registry = lock(&self.migrations);
            registry.admission.end(id);
            registry.prune(self.config.remembered)
        };
        for id in old {
            self.store.remove_later(self.store.migrations().join(id));
        }
        self.may_begin.notify_one();
        self.unbalanced.notify_one();
        self.drain_on.notify_one();
    }

    /// Waits for the end of a migration; not where none is known.
    pub(super) async fn until_over(&self, id: &str) {
        let mut events = self.events.subscribe();
        while self.migration(id).is_ok_and(|m| !m.state.is_over()) {
            // Whatever it is, even that some were missed: there is something to look at.
            if let Err(RecvError::Closed) = events.recv().await {
                return;
            }
        }
    }

    /// A file that is kept of a migration.
    pub(super) async fn kept_file<T>(&self, id: &str, file: &'static str) -> Result<T>
    where
        T: DeserializeOwned + Send + 'static,
    {
        // Nothing else may become a part of a path.
        self.migration(id)?;
        let path = self.store.migration(id, file);
        let read = tokio::task::spawn_blocking(move || store::read(&path)).await;
        match read {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => Err(ControlError::NotFound(format!(
                "there is no {file} of migration {id} here: it is kept at the source, once it is \
                 over"
            ))),
            Ok(Err(why)) => Err(ControlError::Failed(why)),
            Err(e) => Err(ControlError::Failed(e.to_string())),
        }
    }
}

pub(super) fn unknown(id: &str) -> ControlError {
    ControlError::NotFound(format!("no migration {id:?} is known here"))
}

/// What an engine's outcome is called here.
pub(super) const fn state_of(outcome: ReportOutcome) -> MigrationState {
    match outcome {
        ReportOutcome::Completed => MigrationState::Completed,
        ReportOutcome::Cancelled => MigrationState::Cancelled,
        ReportOutcome::Failed => MigrationState::Failed,
        ReportOutcome::Undecided => MigrationState::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Direction;

    fn known(n: u64, state: MigrationState) -> (String, Known) {
        let id = format!("{n:032x}");
        let migration = Migration {
            id: id.clone(),
            vm: "v".to_owned(),
            direction: Direction::Outgoing,
            peer: "b".to_owned(),
            state,
            reason: None,
            asked_ms: n,
            ended_ms: None,
            progress: None,
            blackout_ms: None,
            total_ms: None,
            traceparent: None,
        };
        let kept = Kept {
            migration,
            options: MigrationOptions::default(),
            begun: false,
            parent: None,
            preflight: None,
            clock_ahead_ms: None,
        };
        (id, Known::new(kept))
    }

    #[test]
    fn the_newest_are_remembered_and_what_is_not_over_always() {
        let mut registry = Registry::default();
        let states = [MigrationState::Running, MigrationState::Completed];
        const REMEMBERED: usize = 1000;
        let all = (0..REMEMBERED as u64 + 5).map(|n| known(n, states[usize::from(n != 1)]));
        registry.known.extend(all);
        let gone = registry.prune(REMEMBERED);
        assert_eq!(gone.len(), 4);
        assert!(gone.iter().all(|id| *id < format!("{:032x}", 5)));
        let list = registry.list();
        assert_eq!(list.len(), REMEMBERED + 1);
        assert_eq!(list[0].asked_ms, REMEMBERED as u64 + 4);
        assert_eq!(list[REMEMBERED].asked_ms, 1);
    }
}
