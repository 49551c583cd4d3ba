//! Collectors that are down, slow, or none: nobody waits for them, and what is on disk is whole.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use vmferry_protocol::ids::MigrationId;
use vmferry_service::model::MigrationState;
use vmferry_service::telemetry::otlp::to_otlp_json;
use vmferry_service::telemetry::{
    Exporter, Metrics, MigrationRecord, Protocol, Span, Story, TelemetryConfig, spans,
};
use vmferry_tests::engine::guard;

use super::collector;

const PROTOCOLS: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];

/// One span.
pub(crate) fn short() -> Vec<Span> {
    let spans = spans(&MigrationRecord {
        migration: MigrationId([3; 16]),
        vm: "web-1".to_owned(),
        host: "host-a".to_owned(),
        peer: "host-b".to_owned(),
        parent: None,
        clock_ahead_ms: None,
        preflight: None,
        story: Story::Unreported {
            asked_unix_us: 1_000_000,
            ended_unix_us: 2_000_000,
            reason: "there is no room".to_owned(),
            state: MigrationState::Failed,
        },
    });
    assert_eq!(spans.len(), 1);
    spans
}

fn config(endpoint: &str, protocol: Protocol) -> TelemetryConfig {
    TelemetryConfig {
        endpoint: Some(endpoint.to_owned()),
        protocol,
        ..TelemetryConfig::default()
    }
}

/// All is dropped, and counted.
async fn all_dropped(endpoint: &str, protocol: Protocol) {
    let metrics = Metrics::new().unwrap();
    let counters = metrics.spans();
    let config = config(endpoint, protocol);
    let exporter = Exporter::start(&config, "host-a", counters.clone()).unwrap();
    for _ in 0..2 {
        exporter.export(&short());
    }
    assert!(guard("the exporter", exporter.flush(Duration::MAX)).await);
    assert_eq!(
        (counters.exported.get(), counters.dropped.get()),
        (0, 2),
        "{protocol:?}"
    );
    assert!(metrics.text().contains("vmferry_spans_dropped_total 2"));
}

#[tokio::test]
async fn a_collector_that_is_down() {
    for protocol in PROTOCOLS {
        let (listener, address) = collector::listener().await;
        drop(listener);
        all_dropped(&format!("http://{address}"), protocol).await;
    }
}

#[tokio::test]
async fn a_collector_that_talks_nonsense() {
    for protocol in PROTOCOLS {
        let (listener, address) = collector::listener().await;
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"220 what do you want?\r\n\r\n").await;
            }
        });
        all_dropped(&format!("http://{address}"), protocol).await;
        server.abort();
    }
}

#[tokio::test]
async fn a_collector_that_never_answers() {
    for protocol in PROTOCOLS {
        // It accepts, as the kernel does that for it, and says nothing.
        let (_listener, address) = collector::listener().await;
        let metrics = Metrics::new().unwrap();
        let counters = metrics.spans();
        let config = config(&format!("http://{address}"), protocol);
        let exporter = Exporter::start(&config, "host-a", counters.clone()).unwrap();
        // Nothing else runs meanwhile: there is one thread, and nobody waits here.
        for _ in 0..300 {
            exporter.export(&short());
        }
        assert_eq!(
            (counters.exported.get(), counters.dropped.get()),
            (0, 300 - 256)
        );
        assert!(!exporter.flush(Duration::from_millis(10)).await);
        let kept = to_otlp_json(&config.origin("host-a"), &short()).unwrap();
        assert!(kept["resourceSpans"][0].is_object());
    }
}

#[tokio::test]
async fn no_collector_and_traces_that_nobody_records_are_no_work() {
    let (endpoint, heard) = collector::start(Protocol::HttpJson).await;
    let metrics = Metrics::new().unwrap();
    let nowhere = Exporter::start(&TelemetryConfig::default(), "host-a", metrics.spans()).unwrap();
    nowhere.export(&short());
    assert!(nowhere.flush(Duration::ZERO).await);
    let config = config(&endpoint, Protocol::HttpJson);
    let exporter = Exporter::start(&config, "host-a", metrics.spans()).unwrap();
    let mut spans = short();
    spans[0].sampled = false;
    exporter.export(&spans);
    assert!(guard("nothing", exporter.flush(Duration::MAX)).await);
    assert!(heard.take().is_empty());
    let counters = metrics.spans();
    assert_eq!((counters.exported.get(), counters.dropped.get()), (0, 0));
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_told_at_once() {
    let metrics = Metrics::new().unwrap();
    for endpoint in ["", "collector:4317", "ftp://collector", "http://a b"] {
        let config = config(endpoint, Protocol::Grpc);
        let wrong = Exporter::start(&config, "host-a", metrics.spans()).unwrap_err();
        assert!(wrong.starts_with("endpoint "), "{wrong}");
    }
}
