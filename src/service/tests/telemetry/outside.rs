//! A collector of others takes all three protocols: rotel (PyPI). `scripts/test` installs it;
//! without it, it is said that nothing was shown.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;
use vmferry_service::telemetry::{Exporter, Metrics, Protocol, TelemetryConfig};
use vmferry_tests::engine::guard;

use super::collector;
use super::faulty::short;

/// Where `scripts/test` puts it.
fn rotel() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    let found = target.join("tools/rotel/rotel-agent");
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED (no rotel: scripts/test installs it)");
    None
}

/// A collector that hands on what it takes.
struct Rotel(Child);

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody has just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

async fn up(port: u16) {
    // It tells nobody that it listens.
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn another_collector_takes_every_protocol_and_hands_on_what_was_meant() {
    let Some(binary) = rotel() else { return };
    let (behind, heard) = collector::start(Protocol::Grpc).await;
    let (grpc, http) = (free_port(), free_port());
    let child = Command::new(binary)
        .arg("start")
        .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
        .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
        .args(["--exporter", "otlp", "--otlp-exporter-endpoint", &behind])
        .args(["--batch-timeout", "50ms"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _rotel = Rotel(child);
    guard("rotel", async {
        up(grpc).await;
        up(http).await;
    })
    .await;
    for (protocol, port) in [
        (Protocol::Grpc, grpc),
        (Protocol::HttpProtobuf, http),
        (Protocol::HttpJson, http),
    ] {
        let metrics = Metrics::new().unwrap();
        let config = TelemetryConfig {
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            protocol,
            ..TelemetryConfig::default()
        };
        let exporter = Exporter::start(&config, "host-a", metrics.spans()).unwrap();
        exporter.export(&short());
        assert!(guard("the export", exporter.flush(Duration::MAX)).await);
        assert_eq!(metrics.spans().exported.get(), 1, "{protocol:?}");
        let came = guard("what is handed on", async {
            loop {
                if let Some(came) = heard.take().pop() {
                    return came;
                }
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let resource = &came.resource_spans[0];
        let span = &resource.scope_spans[0].spans[0];
        assert_eq!(span.name, "migration", "{protocol:?}");
        assert_eq!(span.trace_id, [3; 16]);
        let told = format!("{:?}", resource.resource);
        assert!(told.contains("host-a"), "{told}");
        assert!(format!("{:?}", span.status).contains("there is no room"));
    }
}
