//! Commands from their words to what they say and answer, with a service that plays its part.

mod drains;
mod machines;
mod moves;

use std::sync::Arc;

use clap::Parser;
use vmferry_service::model::{Migration, MigrationState, ServiceEvent};

use super::api::{Happening, Result};
use super::fake::{Ends, Fake, session};
use super::{Task, carry_out};
use crate::Exit;
use crate::cli::{Cli, Command};

fn task(words: &str) -> (Task, bool) {
    let cli = Cli::try_parse_from(["vmferry"].into_iter().chain(words.split_whitespace()));
    let cli = cli.unwrap();
    let task = match cli.command {
        Command::Vm(command) => Task::Vm(command),
        Command::Migrate(args) => Task::Migrate(args),
        Command::Migrations(command) => Task::Migrations(command),
        Command::Host(command) => Task::Host(command),
        other => panic!("{other:?} needs no service"),
    };
    (task, cli.connect.json)
}

/// What a command has left.
#[derive(Debug)]
struct Ran {
    exit: std::result::Result<Exit, String>,
    out: String,
    err: String,
}

/// Carries out the words, while `play` does what happens meanwhile.
async fn ran_while(fake: &Arc<Fake>, words: &str, play: impl AsyncFnOnce(&Fake, &Ends)) -> Ran {
    let (task, json) = task(words);
    let (session, ends) = session(fake, json);
    let (exit, ()) = tokio::join!(carry_out(session, task), play(fake, &ends));
    Ran {
        exit: exit.map_err(|e| vmferry_protocol::errors::chain(&e)),
        out: ends.out.text(),
        err: ends.err.text(),
    }
}

async fn ran(fake: &Arc<Fake>, words: &str) -> Ran {
    ran_while(fake, words, async |_, _| {}).await
}

fn fake() -> Arc<Fake> {
    Arc::new(Fake::default())
}

fn event(migration: Migration) -> Result<Happening> {
    Ok(Happening::Event(Box::new(ServiceEvent::Migration(
        migration,
    ))))
}

fn with_reason(migration: Migration, reason: &str) -> Migration {
    Migration {
        reason: Some(reason.to_owned()),
        ..migration
    }
}

fn with_pass(migration: Migration, pass: u32, pages: u64) -> Migration {
    use vmferry_service::model::MigrationProgress;
    assert_eq!(migration.state, MigrationState::Running);
    Migration {
        progress: Some(MigrationProgress {
            phase: "precopy".to_owned(),
            pass,
            pages_total: pages,
            ..MigrationProgress::default()
        }),
        ..migration
    }
}
