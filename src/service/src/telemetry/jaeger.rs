//! OTLP JSON as Jaeger's own JSON, which its UI opens by itself.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value as Json, json};

/// Converts OTLP JSON, of one side or [merged](super::otlp::merge), to what Jaeger's UI opens through
/// "JSON File".
///
/// # Errors
/// In words, where it is no OTLP JSON.
pub fn to_jaeger_json(otlp: &Json) -> Result<Json, String> {
    let request: ExportTraceServiceRequest =
        serde::Deserialize::deserialize(otlp).map_err(|e| format!("this is no OTLP JSON: {e}"))?;
    let mut traces: BTreeMap<String, (Vec<Json>, serde_json::Map<String, Json>)> = BTreeMap::new();
    for (i, of_resource) in request.resource_spans.into_iter().enumerate() {
        let id = format!("p{}", i + 1);
        let process = process(of_resource.resource.as_ref());
        for span in of_resource.scope_spans.into_iter().flat_map(|s| s.spans) {
            let (spans, processes) = traces.entry(hex(&span.trace_id)).or_default();
            processes.insert(id.clone(), process.clone());
            spans.push(self::span(&span, &id));
        }
    }
    let data: Vec<Json> = traces
        .into_iter()
        .map(|(trace, (spans, processes))| {
            json!({
                "traceID": trace,
                "spans": spans,
                "processes": processes,
                "warnings": null,
            })
        })
        .collect();
    let total = data.len();
    Ok(json!({ "data": data, "total": total, "limit": 0, "offset": 0, "errors": null }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn process(resource: Option<&Resource>) -> Json {
    let attributes = resource.map_or(&[][..], |r| &r.attributes);
    let name = attributes.iter().find(|a| a.key == "service.name");
    let name = name.map_or_else(|| json!("unknown"), |a| plain(a.value.as_ref()).1);
    let others = attributes.iter().filter(|a| a.key != "service.name");
    json!({ "serviceName": name, "tags": others.map(tag).collect::<Vec<_>>() })
}

/// Jaeger's name of the type, and the value. Numbers of 64 bits are text there, as in Jaeger's own.
fn plain(value: Option<&AnyValue>) -> (&'static str, Json) {
    match value.and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => ("string", json!(text)),
        Some(Value::BoolValue(yes)) => ("bool", json!(yes)),
        Some(Value::IntValue(n)) => ("int64", json!(n)),
        Some(Value::DoubleValue(x)) => ("float64", json!(x)),
        other => ("string", json!(other.map(|v| format!("{v:?}")))),
    }
}

fn tag(attribute: &KeyValue) -> Json {
    let (kind, value) = plain(attribute.value.as_ref());
    json!({ "key": attribute.key, "type": kind, "value": value })
}

fn text(key: &str, value: &str) -> Json {
    json!({ "key": key, "type": "string", "value": value })
}

fn log(event: &Event) -> Json {
    let mut fields = vec![text("event", &event.name)];
    fields.extend(event.attributes.iter().map(tag));
    json!({ "timestamp": event.time_unix_nano / 1000, "fields": fields })
}

fn span(span: &Span, process: &str) -> Json {
    let trace = hex(&span.trace_id);
    let parent = match span.parent_span_id.as_slice() {
        [] => Vec::new(),
        id => vec![json!({ "refType": "CHILD_OF", "traceID": trace, "spanID": hex(id) })],
    };
    let mut tags: Vec<Json> = span.attributes.iter().map(tag).collect();
    let kind = match span.kind() {
        SpanKind::Client => "client",
        SpanKind::Server => "server",
        _ => "internal",
    };
    tags.push(text("span.kind", kind));
    match span.status.as_ref().map(|s| (s.code(), &s.message)) {
        Some((StatusCode::Ok, _)) => tags.push(text("otel.status_code", "OK")),
        Some((StatusCode::Error, why)) => {
            tags.push(json!({ "key": "error", "type": "bool", "value": true }));
            tags.push(text("otel.status_code", "ERROR"));
            tags.push(text("otel.status_description", why));
        }
        _ => {}
    }
    let took = span
        .end_time_unix_nano
        .saturating_sub(span.start_time_unix_nano);
    json!({
        "traceID": trace,
        "spanID": hex(&span.span_id),
        "operationName": span.name,
        "references": parent,
        "startTime": span.start_time_unix_nano / 1000,
        "duration": took / 1000,
        "tags": tags,
        "logs": span.events.iter().map(log).collect::<Vec<_>>(),
        "processID": process,
        "warnings": null,
    })
}
