//! What is kept, and what Jaeger's UI is given.

use std::collections::BTreeSet;

use serde_json::Value;
use vmferry_service::telemetry::jaeger::to_jaeger_json;
use vmferry_service::telemetry::otlp::{merge, to_otlp_json};
use vmferry_service::telemetry::{MigrationRecord, TelemetryConfig, spans};
use vmferry_tests::engine::run;

use super::sides;

fn kept(record: &MigrationRecord) -> Value {
    let origin = TelemetryConfig::default().origin(&record.host);
    to_otlp_json(&origin, &spans(record)).unwrap()
}

#[test]
fn both_sides_are_one_trace_for_jaegers_page() {
    run(async {
        let sides = sides::failed().await;
        let both = merge([kept(&sides.source), kept(&sides.destination)]);
        let jaeger = to_jaeger_json(&both).unwrap();
        let traces = jaeger["data"].as_array().unwrap();
        assert_eq!(traces.len(), 1);
        let trace = &traces[0];
        assert_eq!(trace["traceID"], sides.source.migration.to_string());
        let processes = trace["processes"].as_object().unwrap();
        let hosts: BTreeSet<&str> = processes
            .values()
            .map(|p| {
                assert_eq!(p["serviceName"], "vmferry");
                let tags = p["tags"].as_array().unwrap();
                let host = tags.iter().find(|t| t["key"] == "host.name").unwrap();
                host["value"].as_str().unwrap()
            })
            .collect();
        assert_eq!(hosts, ["host-a", "host-b"].into());

        let spans = trace["spans"].as_array().unwrap();
        let ids: BTreeSet<&str> = spans
            .iter()
            .map(|s| s["spanID"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), spans.len());
        let mut roots = 0;
        for span in spans {
            assert_eq!(span["traceID"], trace["traceID"]);
            assert!(processes.contains_key(span["processID"].as_str().unwrap()));
            assert!(
                span["startTime"].as_u64().unwrap() > 1_500_000_000_000_000,
                "microseconds"
            );
            assert!(span["duration"].is_u64());
            match span["references"].as_array().unwrap().as_slice() {
                [] => roots += 1,
                [parent] => {
                    assert_eq!(parent["refType"], "CHILD_OF");
                    assert!(ids.contains(parent["spanID"].as_str().unwrap()));
                }
                more => panic!("{more:?}"),
            }
            for tag in span["tags"].as_array().unwrap() {
                let fits = match tag["type"].as_str().unwrap() {
                    "string" => tag["value"].is_string(),
                    "bool" => tag["value"].is_boolean(),
                    "int64" => tag["value"].is_i64(),
                    "float64" => tag["value"].is_f64(),
                    _ => false,
                };
                assert!(fits, "{tag}");
            }
        }
        assert_eq!(roots, 1);
        let root = spans
            .iter()
            .find(|s| s["operationName"] == "migration")
            .unwrap();
        let tags = root["tags"].as_array().unwrap();
        assert!(
            tags.iter()
                .any(|t| t["key"] == "error" && t["value"] == true)
        );
        assert!(!root["logs"].as_array().unwrap().is_empty());
    });
}

#[test]
fn what_is_no_trace_is_told() {
    assert!(to_jaeger_json(&serde_json::json!({ "resourceSpans": 7 })).is_err());
    let none = merge([serde_json::json!([1, 2]), serde_json::json!({})]);
    assert_eq!(
        to_jaeger_json(&none).unwrap()["data"],
        serde_json::json!([])
    );
}
