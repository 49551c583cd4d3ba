//! What an earlier service has left is taken up, and what a VM process that is gone has left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use vmferry_engine::report::MigrationReport;
use vmferry_journal::{Journal, SledJournal};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ownership::Record as JournalRecord;
use vmferry_vmm::api::{Answer, Event, MigrationStatus, Request, Status};
use vmferry_vmm::past::{Whereabouts, whereabouts};
use vmferry_vmm::{JOURNAL, ends};

use super::entry::{self, Entry, Phase};
use super::migrations::{self, Account, Kept, Known};
use super::{Inner, lock, process, store, vms, watch};
use crate::model::{Direction, Migration, MigrationState, VmState};

/// How long a VM process may take to say how it is, when a service has just started.
const STATUS_WITHIN: Duration = Duration::from_secs(20);

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

/// What the journal of a VM's directory holds; its process must be gone. Blocks.
fn journal(dir: &Path) -> Result<Vec<JournalRecord>, String> {
    let dir = dir.join(JOURNAL);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let records = SledJournal::open(&dir).and_then(|journal| journal.records());
    records.map_err(|e| chain(&e))
}

pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(f).await;
    done.unwrap_or_else(|e| Err(e.to_string()))
}

impl Inner {
    /// Takes up everything under the state directory.
    pub(super) async fn adopt_all(self: &Arc<Self>) {
        self.load_migrations().await;
        let dirs = directories(&self.store.vms());
        join_all(dirs.into_iter().map(|dir| self.adopt(dir))).await;
        self.settle_the_rest().await;
        self.load_drain().await;
    }

    async fn load_migrations(&self) {
        let dir = self.store.migrations();
        let read = blocking(move || {
            let mut all = Vec::new();
            for dir in directories(&dir) {
                match store::read::<Kept>(&dir.join(migrations::RECORD)) {
                    Ok(Some(kept)) => all.push(kept),
                    Ok(None) => {}
                    Err(why) => tracing::error!(why, "a migration is not known any more"),
                }
            }
            Ok(all)
        });
        let all = read.await.unwrap_or_default();
        let mut registry = lock(&self.migrations);
        for kept in all {
            let id = kept.migration.id.clone();
            registry.known.insert(id, Known::new(kept));
        }
    }

    /// Migrations that are not over and whose VMs are not here.
    async fn settle_the_rest(&self) {
        let open: Vec<Migration> = {
            let registry = lock(&self.migrations);
            let all = registry.list().into_iter();
            all.filter(|m| !m.state.is_over()).collect()
        };
        for m in open {
            let ours = |e: Arc<Entry>| e.with(|d| d.migration.as_ref() == Some(&m.id));
            if self.entry(&m.vm).is_ok_and(ours) {
                continue;
            }
            let path = self.store.migration(&m.id, migrations::REPORT);
            let report = blocking(move || store::read::<MigrationReport>(&path)).await;
            match report {
                Ok(Some(report)) => {
                    let state = migrations::state_of(report.outcome);
                    let account = Account::Source(&report);
                    self.over(&m.id, state, report.reason.clone(), account);
                }
                _ => {
                    let why = "the host service ended meanwhile, and nothing of the VM is left \
                               here";
                    let why = Some(why.to_owned());
                    self.over(&m.id, MigrationState::Failed, why, Account::None);
                }
            }
        }
    }

    /// Takes up a VM's directory.
    async fn adopt(self: &Arc<Self>, dir: PathBuf) {
        let read = {
            let dir = dir.clone();
            blocking(move || entry::read(&dir)).await
        };
        let named = |r: &entry::Record| dir.file_name() == Some(r.spec.name.as_ref());
        let record = match read {
            Ok(Some(record)) if named(&record) => record,
            Ok(None) if !process::is_there(&dir) => {
                // Made, and not described: nothing was begun in it.
                self.store.remove_later(dir);
                return;
            }
            other => {
                let why = other.err().unwrap_or_else(|| "it is another's".to_owned());
                tracing::error!(dir = %dir.display(), why, "not a VM's directory: see to it");
                return;
            }
        };
        let entry = Entry::new(record, dir, VmState::Starting);
        let _turn = entry.turn().await;
        lock(&self.vms).insert(entry.name.clone(), entry.clone());
        let found = process::find(&entry.dir).await;
        match found {
            Ok(Some(running)) => self.adopt_running(&entry, running).await,
            Ok(None) => {
                let why = match entry.record().phase {
                    Phase::Stopped { crashed, why } => {
                        entry.with(|d| {
                            d.state = match crashed {
                                true => VmState::Crashed,
                                false => VmState::Stopped,
                            };
                            let handed = d.record.undecided.as_deref().map(vms::handed_over);
                            d.detail = why.clone().or(handed);
                        });
                        why.unwrap_or_default()
                    }
                    _ => "its process ended while no host service ran".to_owned(),
                };
                self.died(&entry, why).await;
            }
            Err(why) => self.is_silent(&entry, &why),
        }
        self.changed(&entry);
    }

    pub(super) async fn adopt_running(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        running: process::Running,
    ) {
        let (client, events) = vms::connect(entry, running);
        let status = match timeout(STATUS_WITHIN, client.call(Request::Status)).await {
            Ok(Ok(Answer::Status(status))) => *status,
            // An earlier service may have told it to end: what it leaves says why.
            _ if process::gone(&entry.dir).await => {
                entry.with(|d| d.client = None);
                let why = "its process ended while no host service ran".to_owned();
                return self.died(entry, why).await;
            }
            _ => return self.is_silent(entry, "does not say how it is"),
        };
        entry.note(&status);
        let stays = self.take_over(entry, &status).await;
        // Its process is listened to last: what it has said meanwhile is not lost.
        if stays && entry.client().is_ok() {
            self.spawn(watch::listen(self.clone(), entry.clone(), client, events));
        }
    }

    /// Finds out where a VM is whose process is there; whether it is a VM of this host still.
    async fn take_over(self: &Arc<Self>, entry: &Arc<Entry>, status: &Status) -> bool {
        let record = entry.record();
        if let Some(id) = &record.undecided {
            // It runs only where a user has decided so, of an earlier service.
            let decided = status.machine == "running";
            entry.with(|d| match decided {
                true => d.record.undecided = None,
                false => d.detail = Some(vms::handed_over(id)),
            });
            entry.note(status);
            if decided && let Err(error) = self.save(entry).await {
                tracing::error!(vm = entry.name, %error, "that it is decided is not on disk");
            }
        }
        if let Some(under_way) = &status.migration {
            self.adopt_migration(entry, under_way);
        } else if self.found_end(entry).await {
            return self.entry(&entry.name).is_ok();
        }
        let none = status.machine == "none" && status.migration.is_none();
        match record.phase {
            Phase::Arriving(id) if none => {
                let why = "the host service ended before anybody could come".to_owned();
                self.comes_not(entry, &id, Some(why), Account::None).await;
                return false;
            }
            Phase::Arriving(_) if matches!(status.machine.as_str(), "running" | "paused") => {
                self.arrived(entry).await;
            }
            Phase::Stopped { crashed: false, .. } if status.migration.is_none() => {
                // It was being stopped.
                if let Err(error) = self.end_process(entry).await {
                    tracing::error!(vm = entry.name, %error, "a process that was stopped stays");
                }
                entry.with(|d| d.state = VmState::Stopped);
                self.end_open(entry, "the VM was stopped", false);
            }
            Phase::Live if none => {
                // It was never booted, or has left: what it has written says which.
                if let Err(error) = self.end_process(entry).await {
                    tracing::error!(vm = entry.name, %error, "a process without a machine stays");
                    return true;
                }
                let why = "the host service ended before it was booted: start it";
                self.ended_as(entry, why.to_owned(), false).await;
                return false;
            }
            _ if status.migration.is_none() => self.ask_again(entry),
            _ => {}
        }
        true
    }

    /// A VM process is in the middle of a migration.
    fn adopt_migration(&self, entry: &Entry, under_way: &MigrationStatus) {
        let Some(id) = under_way.id.clone() else {
            return;
        };
        entry.with(|d| d.migration = Some(id.clone()));
        let settling = {
            let line = under_way.progress.as_ref();
            line.is_some_and(|line| line.phase == "settling")
        };
        self.update_kept(&id, |kept| {
            kept.begun = true;
            let state = &mut kept.migration.state;
            // What comes tells nothing of how it gets on.
            if under_way.leaving && !state.is_over() {
                *state = match settling {
                    true => MigrationState::Settling,
                    false => MigrationState::Running,
                };
            }
        });
        if under_way.leaving {
            lock(&self.migrations).admission.has_begun(&id);
            self.unbalanced.notify_one();
            if let Some(line) = &under_way.progress {
                watch::progress(self, entry, line);
            }
        }
    }

    /// Migrations of a VM that are not over, as far as is known here; the oldest first.
    fn open_migrations(&self, entry: &Entry) -> Vec<Migration> {
        let registry = lock(&self.migrations);
        let all = registry.list().into_iter().rev();
        all.filter(|m| m.vm == entry.name && !m.state.is_over())
            .collect()
    }

    /// Looks for the end of a migration that nobody heard; whether there was one.
    async fn found_end(self: &Arc<Self>, entry: &Arc<Entry>) -> bool {
        let open = self.open_migrations(entry).into_iter().map(|m| m.id);
        let arriving = match entry.record().phase {
            Phase::Arriving(id) => Some(id),
            _ => None,
        };
        for id in open.chain(arriving) {
            if let Some(end) = read_end(entry, &id).await {
                entry.with(|d| d.migration = Some(id));
                self.ended(entry, end).await;
                return true;
            }
        }
        false
    }

    /// Looks for the end of the migration that a VM is part of, in case that it was not heard.
    pub(super) async fn look_for_end(self: &Arc<Self>, entry: &Arc<Entry>) {
        let Some(id) = entry.with(|d| d.migration.clone()) else {
            return;
        };
        if let Some(end) = read_end(entry, &id).await {
            self.ended(entry, end).await;
        }
    }

    /// Migrations from here that no VM process has begun wait for their turn again.
    fn ask_again(&self, entry: &Entry) {
        for m in self.open_migrations(entry) {
            if m.direction != Direction::Outgoing {
                continue;
            }
            self.update_kept(&m.id, |kept| {
                kept.begun = false;
                kept.migration.state = MigrationState::Queued;
            });
            let mut registry = lock(&self.migrations);
            if let Some(known) = registry.known.get_mut(&m.id) {
                known.again = m.state != MigrationState::Queued;
            }
            registry.admission.end(&m.id);
            registry.admission.ask(&m.id);
            entry.with(|d| d.migration = Some(m.id));
            self.may_begin.notify_one();
            // A VM is part of one at a time.
            return;
        }
    }

    /// The process of a VM is gone; `why`. What it has left says where the guest is. The caller
    /// has the VM's turn.
    pub(super) async fn died(self: &Arc<Self>, entry: &Arc<Entry>, why: String) {
        self.ended_as(entry, why, true).await;
    }

    /// As [`Self::died`]; `crashed` where a guest ran in it.
    async fn ended_as(self: &Arc<Self>, entry: &Arc<Entry>, why: String, crashed: bool) {
        if self.found_end(entry).await && self.entry(&entry.name).is_err() {
            return;
        }
        let dir = entry.dir.clone();
        let records = blocking(move || journal(&dir)).await;
        let phase = entry.record().phase;
        let place = records.as_ref().map(|r| whereabouts(r));
        let came = |r: &Vec<JournalRecord>| r.iter().any(|r| matches!(r, JournalRecord::Owner(_)));
        let has_come = records.as_ref().is_ok_and(came);
        if matches!(place, Ok(Whereabouts::Here)) {
            // Whatever was to be decided is.
            entry.with(|d| d.record.undecided = None);
        }
        match (place, phase) {
            (Ok(Whereabouts::Left(m)), _) => {
                let id = m.to_string();
                if let Err(error) = self.dismiss(entry).await {
                    tracing::error!(vm = entry.name, %error, "it has left, but stays listed");
                }
                self.over(&id, MigrationState::Completed, None, Account::None);
            }
            (Ok(Whereabouts::Undecided(m)), _) => {
                let id = m.to_string();
                self.is_undecided(entry, &id).await;
                entry.with(|d| d.migration = None);
                let why = format!("{why}; {}", vms::handed_over(&id));
                self.over(&id, MigrationState::Undecided, Some(why), Account::None);
                // Whatever it was, it does not run.
                let _ = self
                    .stays_stopped(entry, true, Some(vms::handed_over(&id)))
                    .await;
            }
            (Ok(Whereabouts::NeverCame(_) | Whereabouts::Here), Phase::Arriving(id))
                if !has_come =>
            {
                self.comes_not(entry, &id, Some(why), Account::None).await;
            }
            (Ok(_), Phase::Stopped { .. }) => self.end_open(entry, &why, has_come),
            (Ok(_), _) => {
                let _ = self.stays_stopped(entry, crashed, Some(why.clone())).await;
                self.end_open(entry, &why, has_come);
            }
            (Err(error), _) => {
                let why = format!("{why}; and {error}");
                let _ = self.stays_stopped(entry, true, Some(why.clone())).await;
                self.end_open(entry, &why, false);
            }
        }
    }

    /// Migrations of a VM that is not part of one any more. One by which it has come is complete,
    /// whatever became of it since.
    fn end_open(&self, entry: &Entry, why: &str, has_come: bool) {
        for m in self.open_migrations(entry) {
            if m.direction == Direction::Incoming && has_come {
                self.let_go(&m);
                self.over(&m.id, MigrationState::Completed, None, Account::None);
            } else {
                self.comes_to_nothing(&m.id, MigrationState::Failed, why.to_owned());
            }
        }
    }
}

async fn read_end(entry: &Entry, id: &str) -> Option<Event> {
    let (dir, id) = (entry.dir.clone(), id.to_owned());
    let read = blocking(move || ends::read(&dir, &id).map_err(|e| e.to_string()));
    match read.await {
        Ok(end) => end,
        Err(why) => {
            tracing::error!(
                vm = entry.name,
                why,
                "the end of a migration cannot be read"
            );
            None
        }
    }
}
