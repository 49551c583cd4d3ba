//! An operator decides where a guest runs, where neither side of its migration can know.

use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Record, Recovery, Role, recover};

use super::{Job, Reply, Vm};
use crate::api::Answer;

impl Vm {
    /// At the destination the guest is taken or discarded, at the source it is taken back. That it
    /// is elsewhere is for whoever ends this process to do.
    pub(super) async fn decide(&self, migration: &str, here: bool) -> Reply {
        if let Job::Arriving(operator, id) = &self.job
            && id.as_deref() == Some(migration)
        {
            operator.decide(here).await?;
            return Ok(Answer::Done);
        }
        self.must_be_free()?;
        let id: MigrationId = migration
            .parse()
            .map_err(|e| format!("migration id: {e}"))?;
        if !here {
            return Err("a guest that is elsewhere needs no process: end it".to_owned());
        }
        self.the_machine()?;
        let records = self.journal.records().map_err(|e| chain(&e))?;
        match recover(Role::Source, id, &records) {
            Recovery::AskPeer => self
                .journal
                .append(&[Record::Reclaimed(id)])
                .map_err(|e| chain(&e))?,
            // Said before, and not heard, or not carried out.
            _ if records.contains(&Record::Reclaimed(id)) => self.must_be_here()?,
            _ => return Err(format!("migration {migration} is not undecided here")),
        }
        self.with_machine(|machine| machine.resume()).await
    }

    /// A migration has failed, or was cancelled. Where `relinquished` could not be flushed it may
    /// be on disk all the same; the commit was never sent, so the guest is here.
    pub(super) fn stays_here(&self, migration: &str) {
        let Ok(id) = migration.parse::<MigrationId>() else {
            return;
        };
        let reclaim = |records: Vec<Record>| match recover(Role::Source, id, &records) {
            Recovery::AskPeer => self.journal.append(&[Record::Reclaimed(id)]),
            _ => Ok(()),
        };
        if let Err(error) = self.journal.records().and_then(reclaim) {
            tracing::error!(%error, "the journal may say that the guest is elsewhere: it is here");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::broadcast;
    use vmferry_journal::{Journal, MemoryJournal};
    use vmferry_machine::{Boot, Console, MachineConfig, MachineKind, MachineState};

    use super::*;
    use crate::api::Request;

    const M: MigrationId = MigrationId([7; 16]);

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_whose_handover_nobody_knows_the_end_of_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(MemoryJournal::default());
        let mut vm = Vm::new(
            dir.path().to_owned(),
            journal.clone(),
            broadcast::channel(16).0,
        );
        let config = MachineConfig {
            kind: MachineKind::Process,
            ram_bytes: 16 << 20,
            vcpus: 1,
            boot: Boot::Workload {
                cmdline: "workload=idle".to_owned(),
            },
            serial: Console::None,
            debugcon: Console::None,
            dirty_rings: false,
            disks: Vec::new(),
        };
        vm.answer(Request::Boot(Box::new(config))).await.unwrap();
        vm.answer(Request::Pause).await.unwrap();
        let decide = |here| Request::Decide {
            migration: M.to_string(),
            here,
        };
        let why = vm.answer(decide(true)).await.unwrap_err();
        assert!(why.contains("is not undecided here"), "{why}");
        journal.append(&[Record::Relinquished(M)]).unwrap();
        let why = vm.answer(Request::Resume).await.unwrap_err();
        assert!(why.contains("and decide"), "{why}");
        let why = vm.answer(decide(false)).await.unwrap_err();
        assert!(why.contains("end it"), "{why}");
        vm.answer(decide(true)).await.unwrap();
        assert_eq!(vm.the_machine().unwrap().state(), MachineState::Running);
        vm.answer(Request::Pause).await.unwrap();
        vm.answer(Request::Resume).await.unwrap();
        // Whoever did not hear the answer asks again; a later handover is another matter.
        vm.answer(decide(true)).await.unwrap();
        vm.answer(Request::Pause).await.unwrap();
        journal
            .append(&[Record::Relinquished(MigrationId([8; 16]))])
            .unwrap();
        assert!(vm.answer(decide(true)).await.is_err());
        assert_eq!(vm.the_machine().unwrap().state(), MachineState::Paused);
        // That one turns out to have failed: its record was on disk though its flush was not heard of.
        vm.stays_here(&MigrationId([8; 16]).to_string());
        vm.answer(Request::Resume).await.unwrap();
        vm.stays_here(&MigrationId([8; 16]).to_string());
        assert_eq!(journal.records().unwrap().len(), 4);
    }
}
