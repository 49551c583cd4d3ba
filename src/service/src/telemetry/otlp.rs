//! Spans as OpenTelemetry has them: for its exporters, and as OTLP JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Event as OtelEvent, SpanContext, SpanId, SpanKind, Status as OtelStatus, TraceFlags, TraceId,
    TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use serde_json::Value as Json;

use super::span::{Attribute, Event, Kind, Span, Status, Value};

/// Whose spans they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `service.name`.
    pub service_name: String,
    /// `host.name`: this host, as its peers call it.
    pub host: String,
}

impl Origin {
    pub(super) fn resource(&self) -> Resource {
        Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", self.service_name.clone()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("host.name", self.host.clone()),
            ])
            .build()
    }
}

fn time(unix_ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

fn attribute((name, value): &Attribute) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(*name, text.clone()),
        Value::Int(n) => KeyValue::new(*name, *n),
        Value::Float(x) => KeyValue::new(*name, *x),
        Value::Bool(yes) => KeyValue::new(*name, *yes),
    }
}

fn event(e: &Event) -> OtelEvent {
    let attributes = e.attributes.iter().map(attribute).collect();
    OtelEvent::new(e.name, time(e.unix_ns), attributes, 0)
}

/// A span as the exporters take it.
pub(super) fn span_data(span: &Span) -> SpanData {
    let flags = if span.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    };
    let mut events = SpanEvents::default();
    events.events = span.events.iter().map(event).collect();
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(span.trace_id),
            SpanId::from_bytes(span.span_id),
            flags,
            false,
            TraceState::default(),
        ),
        parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
            Kind::Internal => SpanKind::Internal,
        },
        name: span.name.clone().into(),
        start_time: time(span.start_ns),
        end_time: time(span.end_ns),
        attributes: span.attributes.iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: match &span.status {
            Status::Unset => OtelStatus::Unset,
            Status::Ok => OtelStatus::Ok,
            Status::Error(why) => OtelStatus::error(why.clone()),
        },
        instrumentation_scope: InstrumentationScope::builder("vmferry")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

/// Spans as OTLP JSON, as a collector takes it and as it is kept on disk.
///
/// # Errors
/// In words; not for spans of this project.
pub fn to_otlp_json(origin: &Origin, spans: &[Span]) -> Result<Json, String> {
    let resource = ResourceAttributesWithSchema::from(&origin.resource());
    let data = spans.iter().map(span_data).collect();
    let request = ExportTraceServiceRequest {
        resource_spans: group_spans_by_resource_and_scope(data, &resource),
    };
    serde_json::to_value(request).map_err(|e| format!("spans cannot be written as JSON: {e}"))
}

/// The two sides of a migration as one OTLP JSON document. What is no such document counts as
/// empty.
#[must_use]
pub fn merge(sides: impl IntoIterator<Item = Json>) -> Json {
    let mut all = Vec::new();
    for mut side in sides {
        if let Some(Json::Array(spans)) = side.get_mut("resourceSpans").map(Json::take) {
            all.extend(spans);
        }
    }
    serde_json::json!({ "resourceSpans": all })
}
