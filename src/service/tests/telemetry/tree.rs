//! The span tree of both hosts, as a collector has it.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use vmferry_service::telemetry::{
    Exporter, Metrics, MigrationRecord, Protocol, TelemetryConfig, spans,
};
use vmferry_tests::engine::{guard, run};

use super::collector;
use super::sides::{self, CALLER, Sides};

const PROTOCOLS: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];

fn text(value: Option<&AnyValue>) -> Option<&str> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a AnyValue> {
    let mut attributes = attributes.iter();
    attributes.find(|a| a.key == name)?.value.as_ref()
}

fn int(span: &Span, name: &str) -> i64 {
    match attribute(&span.attributes, name).and_then(|v| v.value.as_ref()) {
        Some(Value::IntValue(n)) => *n,
        other => panic!("{name} of {}: {other:?}", span.name),
    }
}

fn events(span: &Span) -> Vec<&str> {
    span.events.iter().map(|e| e.name.as_str()).collect()
}

/// What a collector has: spans by path, each with its host.
struct Tree(BTreeMap<String, (String, Span)>);

impl Tree {
    fn at(&self, path: &str) -> &Span {
        let found = self.0.get(path);
        &found
            .unwrap_or_else(|| panic!("no {path} in {:?}", self.paths()))
            .1
    }

    fn paths(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn code(&self, path: &str) -> StatusCode {
        self.at(path).status.as_ref().unwrap().code()
    }

    /// Why it failed.
    fn why(&self, path: &str) -> &str {
        assert_eq!(self.code(path), StatusCode::Error, "{path}");
        &self.at(path).status.as_ref().unwrap().message
    }
}

/// Each host sends its own side; what a collector then has.
async fn collected(protocol: Protocol, sides: &Sides) -> Tree {
    let (endpoint, heard) = collector::start(protocol).await;
    let config = TelemetryConfig {
        endpoint: Some(endpoint),
        protocol,
        ..TelemetryConfig::default()
    };
    for record in [&sides.source, &sides.destination] {
        send(&config, record).await;
    }
    let mut all = Vec::new();
    for request in heard.take() {
        for of_host in request.resource_spans {
            let resource = of_host.resource.unwrap().attributes;
            let service = text(attribute(&resource, "service.name"));
            assert_eq!(service, Some("vmferry"));
            let host = text(attribute(&resource, "host.name")).unwrap().to_owned();
            let spans = of_host.scope_spans.into_iter().flat_map(|s| s.spans);
            all.extend(spans.map(|span| (host.clone(), span)));
        }
    }
    tree(all)
}

async fn send(config: &TelemetryConfig, record: &MigrationRecord) {
    let metrics = Metrics::new().unwrap();
    let counters = metrics.spans();
    let exporter = Exporter::start(config, &record.host, counters.clone()).unwrap();
    let spans = spans(record);
    exporter.export(&spans);
    let flushed = guard("the collector", exporter.flush(std::time::Duration::MAX)).await;
    assert!(flushed);
    assert_eq!(counters.exported.get(), spans.len() as u64);
    assert_eq!(counters.dropped.get(), 0);
}

fn tree(all: Vec<(String, Span)>) -> Tree {
    let by_id: BTreeMap<&[u8], &Span> = all.iter().map(|(_, s)| (&s.span_id[..], s)).collect();
    assert_eq!(by_id.len(), all.len(), "ids are unique");
    let path = |span: &Span| {
        let mut path = span.name.clone();
        let mut at = span;
        while let Some(parent) = by_id.get(&at.parent_span_id[..]) {
            path = format!("{}/{path}", parent.name);
            at = parent;
        }
        // Whoever is outermost is so alone, but for whoever asked.
        assert!(
            at.parent_span_id.is_empty() || at.parent_span_id == CALLER.span_id,
            "{path}"
        );
        path
    };
    let paths: Vec<String> = all.iter().map(|(_, span)| path(span)).collect();
    let count = all.len();
    let tree = Tree(paths.into_iter().zip(all.clone()).collect());
    assert_eq!(tree.0.len(), count, "{:?}", tree.paths());
    for (path, (_, span)) in &tree.0 {
        assert_eq!(span.trace_id, all[0].1.trace_id, "{path}");
        assert!(
            span.end_time_unix_nano >= span.start_time_unix_nano,
            "{path}"
        );
        let inside = path
            .rsplit_once('/')
            .filter(|_| tree.0[path].0 == tree.0[path.split('/').next().unwrap()].0);
        if let Some((parent, _)) = inside {
            let parent = tree.at(parent);
            assert!(
                span.start_time_unix_nano >= parent.start_time_unix_nano,
                "{path}"
            );
            assert!(
                span.end_time_unix_nano <= parent.end_time_unix_nano,
                "{path}"
            );
        }
    }
    tree
}

/// Which host each span is of, that of the source's first.
fn assert_hosts(tree: &Tree) {
    for (path, (host, _)) in &tree.0 {
        let there = path.starts_with("migration/receive");
        assert_eq!(host, if there { "host-b" } else { "host-a" }, "{path}");
    }
}

#[test]
fn a_completed_migration_is_one_tree_over_both_hosts() {
    run(async {
        let sides = sides::completed().await;
        for protocol in PROTOCOLS {
            assert_completed(&collected(protocol, &sides).await);
        }
    });
}

fn assert_completed(tree: &Tree) {
    assert_hosts(tree);
    let root = tree.at("migration");
    assert_eq!(root.trace_id, CALLER.trace_id);
    assert_eq!(root.parent_span_id, CALLER.span_id);
    assert_eq!(root.kind(), SpanKind::Client);
    let passes = tree.paths().iter().filter(|p| p.contains("/pass ")).count();
    assert!(passes >= 2);
    let mut expected = vec![
        "migration",
        "migration/preflight",
        "migration/connect",
        "migration/blackout",
        "migration/settlement",
        "migration/receive",
    ];
    let blackout = [
        "pause",
        "io_cancel",
        "save_state",
        "final_pages",
        "send_state",
        "restore",
        "handover",
        "resume",
    ]
    .map(|part| format!("migration/blackout/{part}"));
    let receive = [
        "make_machine",
        "pages",
        "restore",
        "journal prepared",
        "journal owner",
        "resume",
        "reissue",
        "settlement",
    ]
    .map(|part| format!("migration/receive/{part}"));
    expected.extend(blackout.iter().chain(&receive).map(String::as_str));
    for path in &expected {
        assert_eq!(tree.code(path), StatusCode::Ok, "{path}");
    }
    assert_eq!(tree.0.len(), expected.len() + passes, "{:?}", tree.paths());

    let first = tree.at("migration/pass 1");
    assert!(int(first, "vmferry.pass.pages_considered") > 0);
    assert!(int(first, "vmferry.pass.bytes_wire") > 0);
    for event in ["decided", "codec used", "codec choices"] {
        assert!(events(first).contains(&event), "{event}");
    }
    assert_choices(first);
    assert_eq!(
        events(tree.at("migration/blackout/handover")),
        ["relinquished"]
    );
    assert_eq!(events(tree.at("migration/receive/pages")), ["first page"]);
    assert!(attribute(&root.attributes, "vmferry.clock_offset_ms").is_some());
    let receive = tree.at("migration/receive");
    assert_eq!(receive.kind(), SpanKind::Server);
    assert!(attribute(&receive.attributes, "vmferry.clock_offset_ms").is_none());

    let blackout = tree.at("migration/blackout");
    let unsettled = int(blackout, "vmferry.io.unsettled");
    assert!(unsettled > 0);
    let fences = int(tree.at("migration/receive/settlement"), "vmferry.io.fences");
    assert_eq!(fences, unsettled);
    let reissue = tree.at("migration/receive/reissue");
    let cancelled = int(reissue, "vmferry.io.cancelled");
    assert_eq!(int(reissue, "vmferry.io.reissued"), cancelled);
    assert_eq!(cancelled + unsettled, int(blackout, "vmferry.io.in_flight"));
    // The parts of the blackout are all of it.
    let took = |s: &Span| s.end_time_unix_nano - s.start_time_unix_nano;
    let parts: u64 = blackout_parts(tree).map(took).sum();
    assert!(parts.abs_diff(took(blackout)) < 1000);
}

/// Some choices of codecs one by one, when they were made.
fn assert_choices(pass: &Span) {
    let chosen = pass.events.iter().filter(|e| e.name == "codec chosen");
    let chosen: Vec<_> = chosen.collect();
    assert!((1..=16).contains(&chosen.len()), "{}", chosen.len());
    for choice in chosen {
        let during = pass.start_time_unix_nano..=pass.end_time_unix_nano;
        assert!(during.contains(&choice.time_unix_nano));
        for name in ["vmferry.codec", "vmferry.reason", "vmferry.content"] {
            assert!(attribute(&choice.attributes, name).is_some(), "{name}");
        }
    }
}

fn blackout_parts(tree: &Tree) -> impl Iterator<Item = &Span> {
    let parts = tree.0.iter();
    parts
        .filter(|(path, _)| path.starts_with("migration/blackout/"))
        .map(|(_, (_, span))| span)
}

#[test]
fn a_cancelled_migration_has_no_errors_and_says_who_cancelled() {
    run(async {
        let sides = sides::cancelled().await;
        for protocol in PROTOCOLS {
            assert_cancelled(&collected(protocol, &sides).await, &sides);
        }
    });
}

fn assert_cancelled(tree: &Tree, sides: &Sides) {
    assert_hosts(tree);
    let root = tree.at("migration");
    assert_eq!(root.trace_id, sides.source.migration.0);
    assert!(root.parent_span_id.is_empty());
    for (path, (_, span)) in &tree.0 {
        assert_ne!(
            tree.code(path),
            StatusCode::Error,
            "{path}: {:?}",
            span.status
        );
    }
    for path in [
        "migration",
        "migration/pass 1",
        "migration/receive",
        "migration/receive/pages",
    ] {
        assert_eq!(tree.code(path), StatusCode::Unset, "{path}");
    }
    assert_eq!(tree.code("migration/connect"), StatusCode::Ok);
    assert!(events(root).contains(&"cancelled"));
    assert!(events(tree.at("migration/receive")).contains(&"cancelled"));
    assert!(tree.has("migration/go_back") && !tree.has("migration/blackout"));
}

#[test]
fn a_failed_migration_says_where_and_why_it_failed() {
    run(async {
        let sides = sides::failed().await;
        for protocol in PROTOCOLS {
            assert_failed(&collected(protocol, &sides).await);
        }
    });
}

fn assert_failed(tree: &Tree) {
    assert_hosts(tree);
    let why = tree.why("migration");
    assert!(why.contains("connection"), "{why}");
    assert_eq!(tree.why("migration/blackout"), why);
    let failed = blackout_parts(tree).filter(|s| s.status.as_ref().unwrap().message == why);
    assert_eq!(failed.count(), 1, "the part that it failed in");
    assert_eq!(tree.code("migration/pass 1"), StatusCode::Ok);
    assert_eq!(tree.code("migration/blackout/pause"), StatusCode::Ok);
    assert!(tree.has("migration/go_back"));
    assert!(tree.why("migration/receive").contains("connection"));
    tree.why("migration/receive/pages");
    assert!(!tree.has("migration/receive/restore"));
}
