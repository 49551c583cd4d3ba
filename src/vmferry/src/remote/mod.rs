//! The commands that a host service carries out: the command line as a client of its API.

mod api;
mod connect;
mod console;
mod display;
mod drain;
#[cfg(test)]
mod fake;
mod host;
mod migrate;
mod migrations;
mod preflight;
mod progress;
mod session;
mod spec;
mod state;
mod table;
mod units;
mod vm;
mod watch;

use std::io;

use thiserror::Error;

use crate::cli::{ConnectArgs, HostCommand, MigrateArgs, MigrationsCommand, VmCommand};
use crate::{Exit, fail};
use api::RemoteError;
use session::Session;

/// What a host service is asked to do.
pub(crate) enum Task {
    Vm(VmCommand),
    Migrate(Box<MigrateArgs>),
    Migrations(MigrationsCommand),
    Host(HostCommand),
}

/// Why a command could not be carried out.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What the user said does not fit what there is.
    #[error("{0}")]
    Asked(String),
    #[error("cannot read {0}")]
    Read(String, #[source] io::Error),
    #[error("cannot write {0}")]
    Write(String, #[source] io::Error),
    #[error("cannot print")]
    Output(#[source] io::Error),
    #[error("cannot be said as JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot start")]
    Start(#[source] io::Error),
}

type Result<T> = std::result::Result<T, CommandError>;

/// Carries out a command.
pub(crate) fn run(connect: ConnectArgs, task: Task) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime.map_err(CommandError::Start).and_then(|runtime| {
        runtime.block_on(async {
            let remote = connect::open(&connect)?;
            let session = Session::new(remote, connect.host, connect.json);
            carry_out(session, task).await
        })
    });
    match done {
        Ok(exit) => exit,
        // Who reads from here has read enough, as in `| head`.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => fail(&error),
    }
}

async fn carry_out(mut session: Session, task: Task) -> Result<Exit> {
    match task {
        Task::Vm(command) => vm::run(&mut session, command).await,
        Task::Migrate(args) => migrate::run(&mut session, &args).await,
        Task::Migrations(command) => migrations::run(&mut session, command).await,
        Task::Host(HostCommand::Show) => host::show(&mut session).await,
        Task::Host(HostCommand::Wait(args)) => host::wait(&mut session, &args).await,
        Task::Host(HostCommand::Drain(args)) => drain::run(&mut session, &args).await,
    }
}

#[cfg(test)]
mod tests;
