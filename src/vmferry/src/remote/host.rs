//! `vmferry host show` and `vmferry host wait`.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use vmferry_service::model::HostInfo;

use super::session::Session;
use super::table::{Cell, Tone, pairs};
use super::units::{NONE, mib, moment};
use super::{CommandError, Result};
use crate::Exit;
use crate::cli::WaitArgs;

pub(super) async fn show(session: &mut Session) -> Result<Exit> {
    let host = session.remote.host().await?;
    session.out.either(&host, render)?;
    Ok(Exit::Ok)
}

/// How often an answer is tried for.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Until it answers: nothing tells when a socket appears.
pub(super) async fn wait(session: &mut Session, args: &WaitArgs) -> Result<Exit> {
    let until = Instant::now() + args.at_most;
    loop {
        match timeout_at(until, session.remote.host()).await {
            Ok(Ok(_)) => return Ok(Exit::Ok),
            Ok(Err(error)) if error.may_pass() && Instant::now() < until => {
                sleep(TRY_EVERY).await;
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                let why = "the host service takes connections, and does not answer";
                return Err(CommandError::Asked(why.to_owned()));
            }
        }
    }
}

fn render(h: &HostInfo, colour: bool) -> String {
    let limits = &h.limits;
    let no_limit = |value: u64, text: String| match value {
        0 => "no limit".to_owned(),
        _ => text,
    };
    let compressors = match limits.compressors {
        0 => "as many as processors".to_owned(),
        n => n.to_string(),
    };
    let mut rows: Vec<(&str, Cell)> = vec![
        ("name", h.name.as_str().into()),
        (
            "software",
            format!(
                "{}, protocol {} to {}",
                h.software, h.protocol.0, h.protocol.1
            )
            .into(),
        ),
        (
            "kvm",
            match &h.kvm_problem {
                None => Cell::toned("usable", Tone::Good),
                Some(problem) => Cell::toned(problem, Tone::Bad),
            },
        ),
        ("processors", h.processors.to_string().into()),
        (
            "memory",
            format!(
                "{}, {} of it available",
                mib(h.memory_mib),
                mib(h.available_mib)
            )
            .into(),
        ),
        (
            "machines",
            format!("{} of at most {}", h.vms, limits.vms).into(),
        ),
        (
            "machines' RAM",
            no_limit(
                limits.vm_ram_mib,
                format!("at most {}", mib(limits.vm_ram_mib)),
            )
            .into(),
        ),
        (
            "migrations",
            format!(
                "{} under way, {} wait",
                h.migrations_running, h.migrations_queued
            )
            .into(),
        ),
        (
            "at once",
            format!("{} away, {} to here", limits.outgoing, limits.incoming).into(),
        ),
        (
            "bandwidth",
            no_limit(limits.link_mbit, format!("{} Mbit/s", limits.link_mbit)).into(),
        ),
        ("compressors", compressors.into()),
    ];
    if h.peers.is_empty() {
        rows.push(("peers", NONE.into()));
    }
    for (name, url) in &h.peers {
        rows.push(("peer", format!("{name}  {url}").into()));
    }
    rows.push(("clock", moment(h.now_ms).into()));
    rows.push(("cpu features", h.cpu_features.join(" ").into()));
    pairs(rows, colour)
}
