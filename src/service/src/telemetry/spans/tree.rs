//! Spans of one side as they are put together.

use vmferry_protocol::trace::TraceParent;

use super::super::record::MigrationRecord;
use super::super::span::{Attribute, Event, Kind, Span, Status, Value};
use super::ids::span_id;

/// Spans of one side; moments are milliseconds since that side began.
pub(super) struct Tree<'a> {
    record: &'a MigrationRecord,
    context: TraceParent,
    began_unix_us: u64,
    spans: Vec<Span>,
}

/// Milliseconds to nanoseconds: what is no time counts as none.
fn ns(ms: f64) -> u64 {
    // As casts of floats do: nothing for NaN and what is negative.
    (ms * 1e6).round() as u64
}

impl<'a> Tree<'a> {
    /// `context` is the migration's own span.
    pub(super) fn new(
        record: &'a MigrationRecord,
        context: TraceParent,
        began_unix_us: u64,
    ) -> Self {
        Self {
            record,
            context,
            began_unix_us,
            spans: Vec::new(),
        }
    }

    /// A moment, in nanoseconds since 1970.
    pub(super) fn at(&self, ms: f64) -> u64 {
        self.began_unix_us
            .saturating_mul(1000)
            .saturating_add(ns(ms))
    }

    /// Adds a span; `parent` is the path of its parent, as in `migration/blackout`.
    pub(super) fn add(&mut self, parent: &str, name: &str, from_ms: f64, to_ms: f64) -> &mut Span {
        let id = span_id(self.record.migration, &format!("{parent}/{name}"));
        let parent = Some(span_id(self.record.migration, parent));
        self.push(name, id, parent, (from_ms, to_ms))
    }

    /// Adds the migration's own span.
    pub(super) fn add_root(&mut self, name: &str, from_ms: f64, to_ms: f64) -> &mut Span {
        let parent = self.record.parent.map(|p| p.span_id);
        let id = self.context.span_id;
        let span = self.push(name, id, parent, (from_ms, to_ms));
        span.parent_is_remote = parent.is_some();
        span
    }

    /// Adds a span whose parent is the migration's own, which is another host's. Its path is its
    /// name.
    pub(super) fn add_remote(&mut self, name: &str, from_ms: f64, to_ms: f64) -> &mut Span {
        let id = span_id(self.record.migration, name);
        let parent = Some(self.context.span_id);
        let span = self.push(name, id, parent, (from_ms, to_ms));
        span.parent_is_remote = true;
        span
    }

    fn push(
        &mut self,
        name: &str,
        span_id: [u8; 8],
        parent: Option<[u8; 8]>,
        (from_ms, to_ms): (f64, f64),
    ) -> &mut Span {
        let start_ns = self.at(from_ms);
        let span = Span {
            trace_id: self.context.trace_id,
            span_id,
            parent,
            parent_is_remote: false,
            sampled: self.context.is_sampled(),
            name: name.to_owned(),
            kind: Kind::Internal,
            start_ns,
            end_ns: self.at(to_ms).max(start_ns),
            attributes: Vec::new(),
            events: Vec::new(),
            status: Status::Unset,
        };
        self.spans.push(span);
        // Just pushed.
        let last = self.spans.len() - 1;
        &mut self.spans[last]
    }

    /// The attributes that tell which migration it is.
    pub(super) fn names(&self, side: &'static str) -> Vec<Attribute> {
        let r = self.record;
        let mut attributes: Vec<Attribute> = vec![
            ("vmferry.migration.id", r.migration.to_string().into()),
            ("vmferry.vm", r.vm.as_str().into()),
            ("vmferry.host", r.host.as_str().into()),
            ("vmferry.peer", r.peer.as_str().into()),
            ("vmferry.side", side.into()),
        ];
        push(&mut attributes, "vmferry.clock_offset_ms", r.clock_ahead_ms);
        attributes
    }

    pub(super) fn finish(self) -> Vec<Span> {
        self.spans
    }
}

/// Adds what is known.
pub(super) fn push<T: Into<Value>>(
    attributes: &mut Vec<Attribute>,
    name: &'static str,
    value: Option<T>,
) {
    attributes.extend(value.map(|v| (name, v.into())));
}

/// An event.
pub(super) fn event(name: &'static str, unix_ns: u64, attributes: Vec<Attribute>) -> Event {
    Event {
        name,
        unix_ns,
        attributes,
    }
}
