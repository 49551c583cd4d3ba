//! `vmferry host drain`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use vmferry_service::model::{Drain, DrainItem, DrainRequest, MigrationState, ServiceEvent};

use super::api::{self, Happenings, Remote};
use super::display::Display;
use super::session::Session;
use super::table::Table;
use super::units::{ms, or_none, plain, size};
use super::watch::{End, Watched, watch};
use super::{Result, state};
use crate::Exit;
use crate::cli::DrainArgs;

pub(super) async fn run(session: &mut Session, args: &DrainArgs) -> Result<Exit> {
    let remote = session.remote.clone();
    let events = match args.wait {
        true => Some(remote.events().await?),
        false => None,
    };
    let drain = if args.show {
        remote.drain_state().await?
    } else if args.cancel {
        remote.cancel_drain().await?
    } else {
        let request = DrainRequest {
            to: args.to.clone(),
            parallel: args.parallel,
            options: args.how.options(),
        };
        remote.drain(&request).await?
    };
    if args.wait {
        return wait(session, events).await;
    }
    session.out.either(&drain, render)?;
    if drain.over && !args.cancel {
        return Ok(exit(&drain));
    }
    if !drain.over {
        session
            .display
            .step("under way; follow it with `vmferry host drain --show --wait`");
    }
    Ok(Exit::Ok)
}

/// Shows how a drain gets on until it is over; then its table.
async fn wait(session: &mut Session, events: Option<Happenings>) -> Result<Exit> {
    const FOLLOW: &str = "follow it with `vmferry host drain --show --wait`";
    match watch(session, &mut Draining::default(), events).await? {
        End::Over(drain) => {
            if !session.out.json {
                let text = render(&drain, session.out.colour);
                session.out.text(&text)?;
            }
            Ok(exit(&drain))
        }
        End::Left => {
            session
                .display
                .step(&format!("the drain is left alone; {FOLLOW}"));
            Ok(Exit::Left)
        }
        End::Lost(error) => {
            session.display.step(&format!(
                "vmferry: how it ended is not known: {error}; then {FOLLOW}"
            ));
            Ok(Exit::Unknown)
        }
    }
}

/// A drain that is waited for.
#[derive(Default)]
struct Draining {
    /// Machines whose end was shown.
    ended: BTreeMap<String, MigrationState>,
    /// Bytes a second of the migrations under way, by id.
    throughput: BTreeMap<String, f64>,
}

impl Watched for Draining {
    type Document = Drain;
    const WHAT: &'static str = "drain";

    fn pick(&mut self, event: ServiceEvent) -> Option<Drain> {
        match event {
            ServiceEvent::Drain(drain) => Some(drain),
            ServiceEvent::Migration(m) => {
                match m.progress.filter(|_| m.state == MigrationState::Running) {
                    Some(progress) => self.throughput.insert(m.id, progress.bytes_per_second),
                    None => self.throughput.remove(&m.id),
                };
                None
            }
            _ => None,
        }
    }

    fn read(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, api::Result<Drain>> {
        async move { remote.drain_state().await }.boxed()
    }

    fn cancel(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, api::Result<Drain>> {
        async move { remote.cancel_drain().await }.boxed()
    }

    fn is_over(drain: &Drain) -> bool {
        drain.over
    }

    fn show(&mut self, drain: &Drain, display: &mut dyn Display) {
        for item in drain.items.iter().filter(|item| item.state.is_over()) {
            if self.ended.insert(item.vm.clone(), item.state) != Some(item.state) {
                display.step(&step(item));
            }
        }
        let of = |id: &String| self.throughput.get(id).copied();
        let under_way = drain.items.iter().filter(|item| !item.state.is_over());
        let throughput: f64 = under_way
            .filter_map(|i| i.migration.as_ref())
            .filter_map(of)
            .sum();
        display.status(&line(drain, throughput));
    }

    fn event(drain: Drain) -> ServiceEvent {
        ServiceEvent::Drain(drain)
    }
}

/// The end of one machine's migration.
fn step(item: &DrainItem) -> String {
    let head = format!(
        "{} to {}: {}",
        plain(&item.vm),
        plain(&item.to),
        item.state.name()
    );
    match (item.state, &item.reason) {
        (MigrationState::Completed, _) => format!(
            "{head} in {}, blackout {}",
            or_none(item.total_ms, ms),
            or_none(item.blackout_ms, ms)
        ),
        (_, Some(reason)) => format!("{head}: {}", plain(reason)),
        (_, None) => head,
    }
}

/// How many are in which state.
fn count(drain: &Drain, is: impl Fn(MigrationState) -> bool) -> usize {
    drain.items.iter().filter(|item| is(item.state)).count()
}

/// The line that is shown now.
fn line(drain: &Drain, throughput: f64) -> String {
    let moved = count(drain, |s| s == MigrationState::Completed);
    let wait = count(drain, |s| s == MigrationState::Queued);
    let not = count(drain, |s| s.is_over() && s != MigrationState::Completed);
    let under_way = drain.items.len() - moved - wait - not;
    let head = if drain.cancelled {
        "drain, cancelled"
    } else {
        "drain"
    };
    let mut text = format!(
        "{head} · {moved} of {} moved · {under_way} under way · {wait} wait",
        drain.items.len()
    );
    if not > 0 {
        text.push_str(&format!(" · {not} not moved"));
    }
    if throughput > 0.0 {
        text.push_str(&format!(" · {}/s", size(throughput)));
    }
    text
}

/// The table, and what it comes to.
fn render(drain: &Drain, colour: bool) -> String {
    let mut table = Table::new(["VM", "TO", "STATE", ">TOTAL", ">BLACKOUT", "WHY"]);
    for item in &drain.items {
        table.row([
            item.vm.as_str().into(),
            item.to.as_str().into(),
            state::migration(item.state),
            or_none(item.total_ms, ms).into(),
            or_none(item.blackout_ms, ms).into(),
            item.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    format!("{}{}\n", table.render(colour), line(drain, 0.0))
}

/// What the end of a drain makes its command answer: the worst that has happened.
fn exit(drain: &Drain) -> Exit {
    let any = |state| count(drain, |s| s == state) > 0;
    if any(MigrationState::Undecided) {
        Exit::Undecided
    } else if any(MigrationState::Failed) {
        Exit::Failed
    } else if count(drain, |s| s != MigrationState::Completed) > 0 {
        Exit::Cancelled
    } else {
        Exit::Ok
    }
}
