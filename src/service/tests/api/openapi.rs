//! The OpenAPI document: it is whole, and it is the one that is checked in.

use std::collections::BTreeSet;

use serde_json::Value;
use vmferry_service::api::openapi::document;

fn parsed() -> Value {
    serde_json::from_str(document()).unwrap()
}

#[test]
fn it_is_checked_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == document(),
        "docs/openapi.json differs from the code; this writes it anew:\n\
         cargo run -p vmferry-service --bin openapi -- docs/openapi.json"
    );
}

/// Calls `see` with every value in a document.
fn walk(value: &Value, see: &mut impl FnMut(&Value)) {
    see(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Value::Object(fields) => fields.values().for_each(|field| walk(field, see)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let whole = parsed();
    let mut seen = 0;
    walk(&whole, &mut |value| {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(whole.pointer(pointer).is_some(), "{reference}");
            seen += 1;
        }
    });
    assert!(seen > 50);
}

#[test]
fn every_operation_is_described() {
    let whole = parsed();
    assert!(whole["openapi"].as_str().unwrap().starts_with("3.1."));
    let mut ids = BTreeSet::new();
    for (path, item) in whole["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string(), "{at}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|s| s.starts_with('2')), "{at}");
            for (status, response) in responses {
                let problem = &response["content"]["application/problem+json"];
                assert_eq!(
                    problem.is_object(),
                    !status.starts_with('2'),
                    "{at}: {status}"
                );
            }
            for status in ["403", "500"] {
                assert!(responses.contains_key(status), "{at}: {status}");
            }
            let parts = path.matches('{').count();
            let none = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&none);
            let named = parameters.iter().filter(|p| p["in"] == "path").count();
            assert_eq!(parts, named, "{at}");
            assert_eq!(
                responses.contains_key("404"),
                parts > 0 || ["/v1/host/drain", "/v1/peer/settled"].contains(&path.as_str()),
                "{at}"
            );
            let body = operation["requestBody"].is_object();
            assert_eq!(responses.contains_key("415"), body, "{at}");
        }
    }
    assert_eq!(ids.len(), 33);
}

#[tokio::test]
async fn every_operation_is_there() {
    let lab = crate::common::Lab::new();
    let whole = parsed();
    for (path, item) in whole["paths"].as_object().unwrap() {
        let real = path
            .replace("{name}", "web-1")
            .replace("{id}", &"0".repeat(32));
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|_| path != "/v1/events")
        {
            let method = method.to_ascii_uppercase();
            let answer = lab.ask(&method, &real, "", "").await;
            assert_ne!(answer.status, 405, "{method} {path}");
            let nothing = answer.body.contains("there is nothing at");
            assert!(!nothing, "{method} {path}");
        }
    }
}
