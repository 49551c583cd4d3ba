//! `vmferry migrations`.

use std::fs::OpenOptions;
use std::io::Write;

use vmferry_engine::report::render;
use vmferry_service::model::{Direction, Migration};
use vmferry_service::telemetry::jaeger::to_jaeger_json;

use super::migrate::{self, lines, short};
use super::session::Session;
use super::table::{Cell, Table, pairs};
use super::units::{moment, ms, or_none};
use super::{CommandError, Result, state};
use crate::Exit;
use crate::cli::{MigrationsCommand, TraceArgs, TraceFormat};

pub(super) async fn run(session: &mut Session, command: MigrationsCommand) -> Result<Exit> {
    let remote = session.remote.clone();
    match command {
        MigrationsCommand::List => {
            let all = remote.migrations().await?;
            session.out.either(&all, |all, colour| list(all, colour))?;
        }
        MigrationsCommand::Show(args) => {
            let id = whole(session, &args.migration.id).await?;
            if args.wait {
                return migrate::wait(session, &id, None).await;
            }
            let migration = remote.migration(&id).await?;
            session.out.either(&migration, show)?;
        }
        MigrationsCommand::Report(args) => {
            let id = whole(session, &args.id).await?;
            let report = remote.report(&id).await?;
            session
                .out
                .either(&report, |report, _| lines(&render(report)))?;
        }
        MigrationsCommand::Trace(args) => trace(session, &args).await?,
        MigrationsCommand::Cancel(args) => {
            let id = whole(session, &args.id).await?;
            let migration = remote.cancel(&id).await?;
            session.out.either(&migration, |m, _| {
                format!("migration {}: {}\n", short(&m.id), m.state.name())
            })?;
        }
    }
    Ok(Exit::Ok)
}

/// Digits of a whole id.
const WHOLE: usize = 32;

/// The whole id that begins so.
async fn whole(session: &Session, begin: &str) -> Result<String> {
    if begin.len() == WHOLE {
        return Ok(begin.to_owned());
    }
    let all = session.remote.migrations().await?;
    let mut found = all
        .into_iter()
        .map(|m| m.id)
        .filter(|id| id.starts_with(begin));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(CommandError::Asked(format!(
            "several migrations begin with {begin}: give more digits"
        ))),
        _ => Err(CommandError::Asked(format!(
            "no migration begins with {begin}: `vmferry migrations list` shows what there is"
        ))),
    }
}

/// A trace of OTLP in another format.
fn written_as(otlp: serde_json::Value, format: TraceFormat) -> Result<serde_json::Value> {
    match format {
        TraceFormat::Otlp => Ok(otlp),
        TraceFormat::Jaeger => {
            let strange = |why| CommandError::Asked(format!("the trace makes no sense: {why}"));
            to_jaeger_json(&otlp).map_err(strange)
        }
    }
}

async fn trace(session: &mut Session, args: &TraceArgs) -> Result<()> {
    let id = whole(session, &args.migration.id).await?;
    let trace = written_as(session.remote.trace(&id).await?, args.format)?;
    let Some(path) = &args.out else {
        return session.out.document(&trace);
    };
    let mut text = serde_json::to_vec(&trace).map_err(CommandError::Json)?;
    text.push(b'\n');
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(true);
    open.open(path)
        .and_then(|mut file| file.write_all(&text))
        .map_err(|e| CommandError::Write(path.display().to_string(), e))
}

fn direction(m: &Migration) -> &'static str {
    match m.direction {
        Direction::Outgoing => "to",
        Direction::Incoming => "from",
    }
}

fn list(all: &[Migration], colour: bool) -> String {
    let mut table = Table::new([
        "ID",
        "VM",
        "HOST",
        "STATE",
        "ASKED",
        ">TOTAL",
        ">BLACKOUT",
        "WHY",
    ]);
    for m in all {
        table.row([
            short(&m.id).into(),
            m.vm.as_str().into(),
            format!("{} {}", direction(m), m.peer).into(),
            state::migration(m.state),
            moment(m.asked_ms).into(),
            or_none(m.total_ms, ms).into(),
            or_none(m.blackout_ms, ms).into(),
            m.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    table.render(colour)
}

fn show(m: &Migration, colour: bool) -> String {
    let mut rows: Vec<(&str, Cell)> = vec![
        ("id", m.id.as_str().into()),
        ("vm", m.vm.as_str().into()),
        (direction(m), m.peer.as_str().into()),
        ("state", state::migration(m.state)),
    ];
    if let Some(reason) = &m.reason {
        rows.push(("reason", reason.into()));
    }
    rows.push(("asked", moment(m.asked_ms).into()));
    if let Some(ended) = m.ended_ms {
        rows.push(("ended", moment(ended).into()));
    }
    if let Some(progress) = m.progress.as_ref().filter(|_| !m.state.is_over()) {
        let line = super::progress::Passes::default().line(progress);
        rows.push(("progress", line.into()));
    }
    rows.push(("total", or_none(m.total_ms, ms).into()));
    rows.push(("blackout", or_none(m.blackout_ms, ms).into()));
    if let Some(trace) = &m.traceparent {
        rows.push(("trace", trace.into()));
    }
    pairs(rows, colour)
}
