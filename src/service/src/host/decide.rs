//! A user decides where a guest is, where neither host of its migration can know.

use std::path::Path;

use vmferry_journal::{Journal, SledJournal};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Record, Recovery, Role, recover};
use vmferry_vmm::JOURNAL;
use vmferry_vmm::api::Request;

use super::adopt::blocking;
use super::entry::Entry;
use super::{Inner, Result, vms};
use crate::control::ControlError;
use crate::model::{Decision, MigrationState, Place, VmState};

/// What whoever decides has to know.
fn risks(name: &str, id: &str, guest: Place) -> String {
    let risk = match guest {
        Place::Here => {
            "it runs here from now on. If the other host runs it too, or has it run later, two \
             guests write to the same disks, and their content is lost. Make sure that it does not \
             run there, decide there that it is elsewhere or see that the host is off for good"
        }
        Place::Elsewhere => {
            "this host forgets it, with its memory. If it does not run on the other host, it is \
             lost. Make sure that it runs there"
        }
    };
    format!("'{name}' is undecided since migration {id}: {risk}; then ask again with certain: true")
}

/// Notes in the journal of a VM whose process is gone that its disks are this host's. Blocks.
fn keep(dir: &Path, id: &str) -> std::result::Result<(), String> {
    let id: MigrationId = id.parse().map_err(|e| format!("migration id: {e}"))?;
    let journal = SledJournal::open(&dir.join(JOURNAL)).map_err(|e| chain(&e))?;
    let records = journal.records().map_err(|e| chain(&e))?;
    let was_here = records.contains(&Record::Relinquished(id));
    let (role, record) = match was_here {
        true => (Role::Source, Record::Reclaimed(id)),
        false => (Role::Destination, Record::Owner(id)),
    };
    match recover(role, id, &records) {
        Recovery::AskPeer => {}
        // Said before, by a service that came no further.
        Recovery::Run if records.contains(&record) => return Ok(()),
        _ => {
            return Err(format!(
                "migration {id} is not undecided, as the journal has it"
            ));
        }
    }
    journal.append(&[record]).map_err(|e| chain(&e))
}

impl Inner {
    pub(super) async fn decide(&self, entry: &Entry, decision: Decision) -> Result<()> {
        let _turn = self.turn_of(entry).await?;
        vms::no_silent_process(entry)?;
        let (state, client, id) = entry.with(|d| {
            let id = match d.state {
                VmState::Undecided | VmState::Crashed | VmState::Stopped => {
                    d.record.undecided.clone()
                }
                VmState::Arriving => d.migration.clone(),
                _ => None,
            };
            (d.state, d.client.clone(), id)
        });
        let Some(id) = id else {
            return Err(ControlError::Conflict(format!(
                "there is nothing to decide of '{}'",
                entry.name
            )));
        };
        if !decision.certain {
            return Err(ControlError::Invalid(risks(
                &entry.name,
                &id,
                decision.guest,
            )));
        }
        tracing::warn!(vm = entry.name, id, guest = ?decision.guest, "a user has decided");
        let here = decision.guest == Place::Here;
        let request = Request::Decide {
            migration: id.clone(),
            here,
        };
        match client {
            // The process tells what comes of it.
            Some(client) if state == VmState::Arriving => {
                let done = client.call(request).await;
                return done.map(drop).map_err(|e| vms::refused(&e));
            }
            // Whoever listens to its process finds out what has become of it.
            None if state == VmState::Arriving => return Err(vms::conflict(entry, state)),
            _ if !here => self.dismiss(entry).await?,
            Some(client) => {
                client.call(request).await.map_err(|e| vms::refused(&e))?;
                entry.with(|d| d.record.undecided = None);
                let saved = self.save(entry).await;
                self.decided(&id, here);
                self.refresh(entry).await?;
                return saved;
            }
            None => {
                let (dir, of) = (entry.dir.clone(), id.clone());
                let kept = blocking(move || keep(&dir, &of)).await;
                kept.map_err(ControlError::Failed)?;
                entry.with(|d| d.record.undecided = None);
                let why = "a user has decided that it is here; what it had in memory is lost";
                self.stays_stopped(entry, true, Some(why.to_owned()))
                    .await?;
            }
        }
        self.decided(&id, here);
        Ok(())
    }

    /// What is known of the migration says so.
    fn decided(&self, id: &str, here: bool) {
        self.update_kept(id, |kept| {
            let m = &mut kept.migration;
            if m.state == MigrationState::Undecided {
                let place = if here { "here" } else { "elsewhere" };
                let before = m.reason.take().unwrap_or_default();
                m.reason = Some(format!(
                    "a user has decided that it is {place}; before: {before}"
                ));
            }
        });
    }
}
