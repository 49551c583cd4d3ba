//! The source's spans: `migration` and its parts.

use vmferry_engine::report::{
    ChoiceReport, MigrationReport, PassReport, ReportOutcome, SourceTimeline,
};

use super::super::record::MigrationRecord;
use super::super::span::{Attribute, Event, Kind, Span, Status};
use super::ids::{ROOT, migration_context};
use super::tree::{Tree, event, push};
use crate::model::MigrationState;

const BLACKOUT: &str = "migration/blackout";

/// The spans of a migration that its VM process has reported on.
pub(super) fn spans(record: &MigrationRecord, report: &MigrationReport) -> Vec<Span> {
    let context = migration_context(record.migration, record.parent.as_ref());
    let mut tree = Tree::new(record, context, report.timeline.began_unix_us);
    let why = report.reason.as_deref().unwrap_or("no reason was given");
    let failed = match report.outcome {
        ReportOutcome::Completed | ReportOutcome::Cancelled => None,
        ReportOutcome::Failed | ReportOutcome::Undecided => Some(why),
    };
    let outcome = report.outcome.name();
    let mut attributes = tree.names("source");
    attributes.push(("vmferry.outcome", outcome.into()));
    attributes.extend(about(report));
    let mut events = tracker_choice(report, tree.at(0.0));
    if report.outcome != ReportOutcome::Completed {
        let at = tree.at(report.timeline.gave_up_ms.unwrap_or(report.total_ms));
        let why = vec![("vmferry.reason", why.into())];
        events.push(event(outcome, at, why));
    }
    let root = tree.add_root(ROOT, 0.0, report.total_ms);
    root.kind = Kind::Client;
    root.attributes = attributes;
    root.events = events;
    root.status = match (report.outcome, failed) {
        (ReportOutcome::Completed, _) => Status::Ok,
        (_, Some(why)) => Status::Error(why.to_owned()),
        (_, None) => Status::Unset,
    };
    let preflight_ns = record
        .preflight
        .as_ref()
        .map(|p| p.began_unix_us.saturating_mul(1000));
    if let Some(began) = preflight_ns.filter(|&ns| ns > 0) {
        root.start_ns = root.start_ns.min(began);
    }

    let ending = Ending {
        at_ms: report.timeline.gave_up_ms.unwrap_or(report.total_ms),
        failed,
    };
    preflight(&mut tree, record);
    connect(&mut tree, &report.timeline, &ending);
    for pass in &report.passes {
        add_pass(&mut tree, report, pass).status = Status::Ok;
    }
    if let Some(pass) = &report.pass_cut {
        add_pass(&mut tree, report, pass).status = ending.status();
    }
    blackout(&mut tree, report, &ending);
    if let Some(gave_up) = report.timeline.gave_up_ms {
        tree.add(ROOT, "go_back", gave_up, report.total_ms);
    }
    settlement(&mut tree, report, failed);
    tree.finish()
}

/// The spans of one that no VM process tells of.
pub(super) fn unreported(
    record: &MigrationRecord,
    (asked_us, ended_us): (u64, u64),
    reason: &str,
    state: MigrationState,
) -> Vec<Span> {
    let context = migration_context(record.migration, record.parent.as_ref());
    let mut tree = Tree::new(record, context, asked_us);
    let mut attributes = tree.names("source");
    attributes.push(("vmferry.outcome", state.name().into()));
    // What it is made of ends within it, though it was timed more finely.
    let preflight_us = record.preflight.as_ref().map_or(0, |p| p.ended_unix_us);
    let ended_us = ended_us.max(preflight_us);
    let took_ms = ended_us.saturating_sub(asked_us) as f64 / 1e3;
    let root = tree.add_root(ROOT, 0.0, took_ms);
    root.kind = Kind::Client;
    root.attributes = attributes;
    if state != MigrationState::Completed {
        let why = vec![("vmferry.reason", reason.into())];
        root.events.push(event(state.name(), root.end_ns, why));
    }
    root.status = match state {
        MigrationState::Completed => Status::Ok,
        MigrationState::Cancelled => Status::Unset,
        _ => Status::Error(reason.to_owned()),
    };
    preflight(&mut tree, record);
    tree.finish()
}

/// How and when what is not complete was cut.
struct Ending<'a> {
    at_ms: f64,
    failed: Option<&'a str>,
}

impl Ending<'_> {
    fn status(&self) -> Status {
        let failed = |why: &str| Status::Error(why.to_owned());
        self.failed.map_or(Status::Unset, failed)
    }
}

fn about(r: &MigrationReport) -> Vec<Attribute> {
    let mut a: Vec<Attribute> = vec![
        ("vmferry.machine", r.machine.as_str().into()),
        ("vmferry.vcpus", u64::from(r.vcpus).into()),
        ("vmferry.ram_bytes", r.ram_bytes.into()),
        ("vmferry.transport", r.transport.as_str().into()),
        ("vmferry.streams", u64::from(r.streams).into()),
        ("vmferry.tracker", r.tracker.as_str().into()),
        ("vmferry.codec", r.codec.as_str().into()),
        ("vmferry.total_ms", r.total_ms.into()),
        ("vmferry.bytes_memory", r.bytes_memory.into()),
        ("vmferry.bytes_wire", r.bytes_wire.into()),
        ("vmferry.pages_zero", r.pages_zero.into()),
        ("vmferry.pages_unchanged", r.pages_unchanged.into()),
        ("vmferry.notifications", r.notifications.answered.into()),
        ("vmferry.stall_ms", r.notifications.stall_ms.into()),
        ("vmferry.throttled_ms", r.notifications.throttled_ms.into()),
        ("vmferry.vcpu_run_delay_ms", r.vcpu_run_delay_ms.into()),
    ];
    push(&mut a, "vmferry.blackout_ms", r.blackout_ms);
    push(&mut a, "vmferry.blackout.guest_ms", r.blackout_guest_ms);
    push(&mut a, "vmferry.brownout_pct", r.guest.brownout_pct);
    push(&mut a, "vmferry.brownout_lost_ms", r.guest.brownout_lost_ms);
    push(&mut a, "vmferry.verify", r.guest.verify.as_deref());
    a
}

fn tracker_choice(report: &MigrationReport, at: u64) -> Vec<Event> {
    let choice = report.tracker_choice.iter().map(|choice| {
        let tracker = ("vmferry.tracker", report.tracker.as_str().into());
        let why = vec![tracker, ("vmferry.reason", choice.why.as_str().into())];
        event("tracker chosen", at, why)
    });
    choice.collect()
}

fn preflight(tree: &mut Tree<'_>, record: &MigrationRecord) {
    let Some(p) = &record.preflight else { return };
    let us = |us: u64| us.saturating_mul(1000);
    let span = tree.add(ROOT, "preflight", 0.0, 0.0);
    span.start_ns = us(p.began_unix_us);
    span.end_ns = us(p.ended_unix_us).max(span.start_ns);
    let a = &mut span.attributes;
    a.push(("vmferry.preflight.problems", p.problems.into()));
    span.status = match p.problems {
        0 => Status::Ok,
        n => Status::Error(format!("{n} problems stand against the migration")),
    };
}

fn connect(tree: &mut Tree<'_>, t: &SourceTimeline, ending: &Ending<'_>) {
    let connected = t.connected_ms.map(|ms| tree.at(ms));
    let span = tree.add(ROOT, "connect", 0.0, t.accepted_ms.unwrap_or(ending.at_ms));
    span.kind = Kind::Client;
    span.status = match t.accepted_ms {
        Some(_) => Status::Ok,
        None => ending.status(),
    };
    let connected = connected.map(|at| event("connected", at, Vec::new()));
    span.events.extend(connected);
}

fn add_pass<'t>(tree: &'t mut Tree<'_>, r: &MigrationReport, p: &PassReport) -> &'t mut Span {
    let name = format!("pass {}", p.pass);
    let sampled: Vec<_> = p
        .sampled
        .iter()
        .map(|c| choice(c, tree.at(c.at_ms)))
        .collect();
    let span = tree.add(ROOT, &name, p.began_ms, p.began_ms + p.duration_ms);
    span.attributes = vec![
        ("vmferry.pass.number", u64::from(p.pass).into()),
        ("vmferry.pass.final", p.r#final.into()),
        ("vmferry.pass.pages_considered", p.pages_considered.into()),
        ("vmferry.pass.pages_sent", p.pages_sent.into()),
        ("vmferry.pass.pages_unchanged", p.pages_unchanged.into()),
        ("vmferry.pass.pages_deferred", p.pages_deferred.into()),
        ("vmferry.pass.bytes_wire", p.bytes_wire.into()),
        ("vmferry.pass.notifications", p.notifications.into()),
        ("vmferry.pass.read_ms", p.read_ms.into()),
    ];
    let at = span.end_ns;
    for (codec, used) in &p.codecs {
        let used = vec![
            ("vmferry.codec", codec.as_str().into()),
            ("vmferry.codec.chunks", used.chunks.into()),
            ("vmferry.codec.pages", used.pages.into()),
            ("vmferry.codec.bytes", used.bytes.into()),
            ("vmferry.codec.ratio", used.ratio.into()),
            ("vmferry.codec.processor_ms", used.processor_ms.into()),
        ];
        span.events.push(event("codec used", at, used));
    }
    for (why, chunks) in &p.choices {
        let choice = vec![
            ("vmferry.reason", why.as_str().into()),
            ("vmferry.codec.chunks", (*chunks).into()),
        ];
        span.events.push(event("codec choices", at, choice));
    }
    span.events.extend(sampled);
    for d in r.decisions.iter().filter(|d| d.after_pass == p.pass) {
        let decided = vec![
            ("vmferry.decision", d.decision.as_str().into()),
            ("vmferry.decision.blackout_ms", d.blackout_ms.into()),
            ("vmferry.decision.saved_ms", d.saved_ms.into()),
            ("vmferry.decision.cost_ms", d.cost_ms.into()),
        ];
        span.events.push(event("decided", at, decided));
    }
    span
}

/// One chunk's choice, of those that were kept one by one.
fn choice(c: &ChoiceReport, at: u64) -> Event {
    let mut a: Vec<Attribute> = vec![
        ("vmferry.codec", c.codec.as_str().into()),
        ("vmferry.reason", c.why.as_str().into()),
        ("vmferry.content", c.content.as_str().into()),
        ("vmferry.codec.pages", c.pages.into()),
        ("vmferry.codec.bytes", c.bytes.into()),
        ("vmferry.codec.processor_us", c.processor_us.into()),
        ("vmferry.codec.cost_us", c.cost_us.into()),
        ("vmferry.codec.cost_raw_us", c.cost_raw_us.into()),
        ("vmferry.link.queue", c.queue.into()),
        ("vmferry.link.price", c.link_price.into()),
        ("vmferry.compressors", c.compressors.into()),
        ("vmferry.compressors.share", c.share.into()),
        ("vmferry.processors.spare", c.spare.into()),
        ("vmferry.receiver", c.receiver.into()),
    ];
    push(&mut a, "vmferry.link.mbit", c.link_mbit);
    event("codec chosen", at, a)
}

fn blackout(tree: &mut Tree<'_>, r: &MigrationReport, ending: &Ending<'_>) {
    let t = &r.timeline;
    let Some(pause) = t.pause_ms else { return };
    let parts = match &r.blackout_breakdown_ms {
        Some(parts) => measured(pause, &parts.parts()),
        None => reached(t),
    };
    let until = match &r.blackout_breakdown_ms {
        Some(parts) => pause + parts.total(),
        None => ending.at_ms,
    };
    let relinquished = t.relinquished_ms.map(|ms| tree.at(ms));
    let span = tree.add(ROOT, "blackout", pause, until);
    let a = &mut span.attributes;
    push(a, "vmferry.blackout_ms", r.blackout_ms);
    push(a, "vmferry.blackout.predicted_ms", r.blackout_predicted_ms);
    push(a, "vmferry.blackout.guest_ms", r.blackout_guest_ms);
    if let Some(io) = &r.io {
        a.push(("vmferry.io.in_flight", io.in_flight_at_pause.into()));
        a.push(("vmferry.io.cancelled", io.cancelled.into()));
        a.push(("vmferry.io.unsettled", io.unsettled.into()));
        a.push(("vmferry.journal.flush_ms", io.journal_flush_ms.into()));
    }
    span.status = match r.blackout_ms {
        Some(_) => Status::Ok,
        None => ending.status(),
    };
    for (name, from, to) in parts {
        let part = tree.add(BLACKOUT, name, from, to.unwrap_or(ending.at_ms));
        part.status = match to {
            Some(_) => Status::Ok,
            None => ending.status(),
        };
        if name == "handover"
            && let Some(at) = relinquished
        {
            part.events.push(event("relinquished", at, Vec::new()));
        }
    }
}

type Part = (&'static str, f64, Option<f64>);

/// One after the other, as they sum to the blackout.
fn measured(pause: f64, parts: &[(&'static str, f64)]) -> Vec<Part> {
    let mut at = pause;
    let mut next = |&(name, ms): &(&'static str, f64)| {
        let from = at;
        at += ms;
        (name, from, Some(at))
    };
    parts.iter().map(&mut next).collect()
}

/// As far as it came. Parts that only the destination could tell apart are left out.
fn reached(t: &SourceTimeline) -> Vec<Part> {
    let moments = [
        ("pause", t.pause_ms, t.paused_ms),
        ("io_cancel", t.paused_ms, t.io_cancelled_ms),
        ("save_state", t.io_cancelled_ms, t.state_saved_ms),
        ("final_pages", t.state_saved_ms, t.final_acked_ms),
        ("send_state", t.final_acked_ms, t.prepared_ms),
        ("handover", t.prepared_ms, t.resumed_ms),
    ];
    let begun = moments.into_iter();
    begun
        .filter_map(|(name, from, to)| Some((name, from?, to)))
        .collect()
}

fn settlement(tree: &mut Tree<'_>, r: &MigrationReport, failed: Option<&str>) {
    let unsettled = r.io.as_ref().map_or(0, |io| io.unsettled);
    let Some(resumed) = r.timeline.resumed_ms.filter(|_| unsettled > 0) else {
        return;
    };
    let settled = r.timeline.settled_ms;
    let span = tree.add(ROOT, "settlement", resumed, settled.unwrap_or(r.total_ms));
    let fences = ("vmferry.io.unsettled", unsettled.into());
    span.attributes.push(fences);
    span.status = match (settled, failed) {
        (Some(_), _) => Status::Ok,
        (None, Some(why)) => Status::Error(why.to_owned()),
        (None, None) => Status::Unset,
    };
}
