//! The destination's spans: `receive` and its parts.

use vmferry_engine::report::DestinationTimeline;

use super::super::record::MigrationRecord;
use super::super::span::{Attribute, Kind, Span, Status};
use super::ids::migration_context;
use super::tree::{Tree, event};

const RECEIVE: &str = "receive";

/// A part: name, begin, end, attributes.
type Part = (&'static str, Option<f64>, Option<f64>, Vec<Attribute>);

fn parts(t: &DestinationTimeline) -> Vec<Part> {
    let owner_from = t.owner_ms.map(|owner| owner - t.owner_flush_ms);
    let mut parts: Vec<Part> = vec![
        ("make_machine", t.offered_ms, t.machine_made_ms, Vec::new()),
        ("pages", t.machine_made_ms, t.all_pages_ms, Vec::new()),
        ("restore", t.all_pages_ms, t.restored_ms, Vec::new()),
        (
            "journal prepared",
            t.restored_ms,
            t.prepared_ms,
            vec![("vmferry.journal.flush_ms", t.prepared_flush_ms.into())],
        ),
        (
            "journal owner",
            owner_from,
            t.owner_ms,
            vec![("vmferry.journal.flush_ms", t.owner_flush_ms.into())],
        ),
        (
            "resume",
            t.owner_ms,
            t.resumed_ms,
            vec![("vmferry.resume_ms", t.resume_took_ms.into())],
        ),
    ];
    if t.jobs_cancelled + t.jobs_unsettled > 0 {
        let counted = vec![
            ("vmferry.io.cancelled", t.jobs_cancelled.into()),
            ("vmferry.io.unsettled", t.jobs_unsettled.into()),
            ("vmferry.io.reissued", t.jobs_reissued.into()),
        ];
        parts.push(("reissue", t.owner_ms, t.jobs_ended_ms, counted));
    }
    if t.jobs_unsettled > 0 {
        let fences = vec![("vmferry.io.fences", t.jobs_unsettled.into())];
        parts.push(("settlement", t.resumed_ms, t.fences_lifted_ms, fences));
    }
    parts
}

pub(super) fn spans(
    record: &MigrationRecord,
    t: &DestinationTimeline,
    failure: Option<&str>,
) -> Vec<Span> {
    let context = record
        .parent
        .unwrap_or_else(|| migration_context(record.migration, None));
    let mut tree = Tree::new(record, context, t.began_unix_us);
    let parts = parts(t);
    let last = parts.iter().filter_map(|p| p.2).fold(0.0, f64::max);
    let end = t.closed_ms.unwrap_or(last).max(last);
    let failed = failure.filter(|_| !t.cancelled);
    let first_page = t.first_page_ms.map(|ms| tree.at(ms));
    let listening = tree.at(0.0);
    let mut names = tree.names("destination");
    names.push(("vmferry.outcome", outcome(t, failure).into()));
    let receive = tree.add_remote(RECEIVE, t.connected_ms.unwrap_or(0.0), end);
    receive.kind = Kind::Server;
    receive.attributes = names;
    receive.status = match (failure, failed) {
        (None, _) => Status::Ok,
        (Some(why), Some(_)) => Status::Error(why.to_owned()),
        (Some(_), None) => Status::Unset,
    };
    let at = receive.end_ns;
    if let Some(why) = failure {
        let name = if t.cancelled { "cancelled" } else { "failed" };
        let why = vec![("vmferry.reason", why.into())];
        receive.events.push(event(name, at, why));
    }
    receive
        .events
        .insert(0, event("listening", listening, Vec::new()));

    for (name, from, to, attributes) in parts {
        let Some(from) = from else { continue };
        let part = tree.add(RECEIVE, name, from, to.unwrap_or(end));
        part.attributes = attributes;
        part.status = match (to, failed) {
            (Some(_), _) => Status::Ok,
            // What had begun and did not end is where it failed.
            (None, Some(why)) => Status::Error(why.to_owned()),
            (None, None) => Status::Unset,
        };
        if name == "pages"
            && let Some(at) = first_page
        {
            part.events.push(event("first page", at, Vec::new()));
        }
    }
    tree.finish()
}

fn outcome(t: &DestinationTimeline, failure: Option<&str>) -> &'static str {
    match failure {
        None => "completed",
        Some(_) if t.cancelled => "cancelled",
        Some(_) => "failed",
    }
}
