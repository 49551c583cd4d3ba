//! `vmferry migrate`, and waiting for a migration.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;
use tokio::time::Instant;
use vmferry_engine::report::{MigrationReport, render};
use vmferry_service::model::{Migration, MigrationRequest, MigrationState, ServiceEvent};

use super::api::{self, Happenings, Remote};
use super::display::Display;
use super::progress::Passes;
use super::session::Session;
use super::units::{ms, or_none, plain};
use super::watch::{End, Watched, watch};
use super::{Result, preflight, state};
use crate::Exit;
use crate::cli::MigrateArgs;

pub(super) async fn run(session: &mut Session, args: &MigrateArgs) -> Result<Exit> {
    let remote = session.remote.clone();
    let request = MigrationRequest {
        to: args.to.clone(),
        options: args.how.options(),
        traceparent: None,
    };
    if args.dry_run {
        let preflight = remote.preflight(&args.vm, &request).await?;
        session.out.either(&preflight, |p, colour| {
            preflight::render(&args.vm, &args.to, p, colour)
        })?;
        return Ok(preflight::exit(&preflight));
    }
    if args.wait {
        // Listened to before there is anything to hear.
        let events = remote.events().await?;
        let started = remote.migrate(&args.vm, &request).await?;
        return wait(session, &started.id, Some(events)).await;
    }
    let started = remote.migrate(&args.vm, &request).await?;
    session
        .out
        .either(&started, |s, _| format!("{}\n", plain(&s.id)))?;
    session.display.step(&format!(
        "begun; follow it with `vmferry migrations show {} --wait`",
        short(&started.id)
    ));
    Ok(Exit::Ok)
}

/// As much of an id as tells it from others, for people.
pub(super) fn short(id: &str) -> String {
    plain(id).chars().take(12).collect()
}

/// A migration that is waited for.
struct Moving {
    id: String,
    since: Instant,
    state: Option<MigrationState>,
    passes: Passes,
}

impl Watched for Moving {
    type Document = Migration;
    const WHAT: &'static str = "migration";

    fn pick(&mut self, event: ServiceEvent) -> Option<Migration> {
        match event {
            ServiceEvent::Migration(migration) if migration.id == self.id => Some(migration),
            _ => None,
        }
    }

    fn read(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, api::Result<Migration>> {
        let id = self.id.clone();
        async move { remote.migration(&id).await }.boxed()
    }

    fn cancel(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, api::Result<Migration>> {
        let id = self.id.clone();
        async move { remote.cancel(&id).await }.boxed()
    }

    fn is_over(migration: &Migration) -> bool {
        migration.state.is_over()
    }

    fn show(&mut self, migration: &Migration, display: &mut dyn Display) {
        if self.state.replace(migration.state) != Some(migration.state) {
            display.step(&step(migration));
        }
        if let Some(progress) = &migration.progress
            && matches!(
                migration.state,
                MigrationState::Running | MigrationState::Settling
            )
        {
            if let Some(pass) = self.passes.update(progress, self.since.elapsed()) {
                display.step(&pass);
            }
            display.status(&self.passes.line(progress));
        }
    }

    fn event(migration: Migration) -> ServiceEvent {
        ServiceEvent::Migration(migration)
    }
}

/// What a new state means.
fn step(m: &Migration) -> String {
    let (vm, peer) = (plain(&m.vm), plain(&m.peer));
    match m.state {
        MigrationState::Queued => format!("{vm}: waits for its turn"),
        MigrationState::Preflight => format!("{vm}: both hosts look whether it can move to {peer}"),
        MigrationState::Running => format!("{vm}: moves to {peer}"),
        MigrationState::Settling => {
            format!("{vm}: runs at {peer}; storage is still at work for this host")
        }
        MigrationState::Completed => format!("{vm}: runs at {peer}"),
        MigrationState::Cancelled => format!("{vm}: cancelled, goes on here"),
        MigrationState::Failed => format!("{vm}: failed, goes on here"),
        MigrationState::Undecided => format!(
            "{vm}: undecided; neither host may run it until an operator has looked at both \
             (`vmferry vm show {vm}` on each) and decided (`vmferry vm decide {vm}`)"
        ),
    }
}

/// The end of a stream of events with `--json`, beside [`ServiceEvent`]: the report.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
enum Last<'a> {
    Report(&'a MigrationReport),
}

/// Shows how a migration gets on until it is over; then its report.
pub(super) async fn wait(
    session: &mut Session,
    id: &str,
    events: Option<Happenings>,
) -> Result<Exit> {
    let mut moving = Moving {
        id: id.to_owned(),
        since: Instant::now(),
        state: None,
        passes: Passes::default(),
    };
    let follow = format!(
        "follow it with `vmferry migrations show {} --wait`",
        short(id)
    );
    let migration = match watch(session, &mut moving, events).await? {
        End::Over(migration) => migration,
        End::Left => {
            session
                .display
                .step(&format!("the migration is left alone; {follow}"));
            return Ok(Exit::Left);
        }
        End::Lost(error) => {
            session.display.step(&format!(
                "vmferry: how it ended is not known: {error}; then {follow}"
            ));
            return Ok(Exit::Unknown);
        }
    };
    let report = session.remote.report(id).await;
    match report {
        Ok(report) if session.out.json => session.out.line(&Last::Report(&report))?,
        Ok(report) => session.out.text(&lines(&render(&report)))?,
        Err(error) => {
            // One that failed before it began has none.
            if !error.is_not_found() {
                session
                    .display
                    .step(&format!("vmferry: no report: {error}"));
            }
            if !session.out.json {
                session.out.text(&summary(&migration))?;
            }
        }
    }
    if migration.state != MigrationState::Completed {
        let why = migration.reason.as_deref().unwrap_or("no reason was given");
        session.display.step(&format!(
            "vmferry: migration {}: {}",
            migration.state.name(),
            plain(why)
        ));
    }
    Ok(state::exit(migration.state))
}

/// A text of several lines, harmless.
pub(super) fn lines(text: &str) -> String {
    text.lines()
        .map(|line| format!("{}\n", plain(line)))
        .collect()
}

/// A migration that has no report.
fn summary(m: &Migration) -> String {
    format!(
        "migration {}: {} · total {} · blackout {}\n",
        plain(&m.id),
        m.state.name(),
        or_none(m.total_ms, ms),
        or_none(m.blackout_ms, ms)
    )
}
