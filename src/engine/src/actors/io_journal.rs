//! `IoJournal`: puts records on disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_journal::Journal;
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Persist, Stored};

use super::Settle;

/// The journal's thread.
pub(crate) struct IoJournal {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) owner: Recipient<Written>,
}

impl std::fmt::Debug for IoJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoJournal")
    }
}

impl Actor for IoJournal {
    type Context = SyncContext<Self>;
}

/// Put this on disk.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Write(pub(crate) Persist);

/// What came of it, and how long it took.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Written(pub(crate) Result<(Stored, Duration), String>);

/// The migration is over on both sides: its records mean nothing any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Forget(pub(crate) MigrationId);

impl Handler<Write> for IoJournal {
    type Result = ();

    fn handle(&mut self, Write(persist): Write, _: &mut SyncContext<Self>) {
        let began = Instant::now();
        let written = persist.store(|records| self.journal.append(records));
        self.owner.do_send(Written(match written {
            Ok(stored) => Ok((stored, began.elapsed())),
            Err(error) => Err(chain(&error)),
        }));
    }
}

impl Handler<Forget> for IoJournal {
    type Result = ();

    fn handle(&mut self, Forget(migration): Forget, _: &mut SyncContext<Self>) {
        if let Err(error) = self.journal.forget(migration) {
            // They are looked at again after the next start, and mean the same.
            tracing::warn!(error = chain(&error), %migration, "old journal records stay");
        }
    }
}

impl Handler<Settle> for IoJournal {
    type Result = ();

    fn handle(&mut self, _: Settle, _: &mut SyncContext<Self>) {}
}
