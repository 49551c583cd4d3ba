//! Spans on their way to a collector. It never makes anybody wait: what does not fit into the
//! queue, or does not arrive in time, is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::HttpClient;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    Protocol as OtlpProtocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::trace::SpanExporter as _;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use super::otlp::{Origin, span_data};
use super::span::Span;

/// How spans travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// OTLP over gRPC, usually port 4317.
    #[default]
    Grpc,
    /// OTLP over HTTP as protobuf, usually port 4318.
    HttpProtobuf,
    /// OTLP over HTTP as JSON, usually port 4318.
    HttpJson,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// URL of an OTLP collector, as in `http://collector:4317`; none: spans stay on this host. Over
    /// HTTP, `/v1/traces` is added where the URL has no path.
    pub endpoint: Option<String>,
    /// `grpc`, `http-protobuf` or `http-json`.
    pub protocol: Protocol,
    /// Name of this service in traces.
    pub service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::default(),
            service_name: "vmferry".to_owned(),
        }
    }
}

impl TelemetryConfig {
    /// Whose spans those of `host` are.
    #[must_use]
    pub fn origin(&self, host: &str) -> Origin {
        Origin {
            service_name: self.service_name.clone(),
            host: host.to_owned(),
        }
    }
}

/// What became of spans.
#[derive(Clone, Debug)]
pub struct SpanCounters {
    /// A collector has them.
    pub exported: IntCounter,
    /// They were given up.
    pub dropped: IntCounter,
}

/// Longest that one migration's spans may take to be taken by the collector.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most migrations whose spans wait.
const QUEUE: usize = 256;

enum Job {
    Spans(Vec<Span>),
    /// All before it has been sent, or dropped.
    Flush(oneshot::Sender<()>),
}

/// Sends spans to a collector, if there is one.
#[derive(Debug)]
pub struct Exporter {
    jobs: Option<mpsc::Sender<Job>>,
    counters: SpanCounters,
}

impl Exporter {
    /// Begins to send. Inside a tokio runtime, in which a task of its own does the work.
    ///
    /// # Errors
    /// In words, where the configuration makes no sense. A collector that cannot be reached is no
    /// error.
    pub fn start(
        config: &TelemetryConfig,
        host: &str,
        counters: SpanCounters,
    ) -> Result<Self, String> {
        let jobs = match &config.endpoint {
            None => None,
            Some(endpoint) => {
                let mut exporter = build(config, endpoint)?;
                exporter.set_resource(&config.origin(host).resource());
                let (sender, receiver) = mpsc::channel(QUEUE);
                let counters = counters.clone();
                tokio::spawn(send_all(exporter, endpoint.clone(), receiver, counters));
                Some(sender)
            }
        };
        Ok(Self { jobs, counters })
    }

    /// Has spans sent, as far as their trace is recorded. Returns at once.
    pub fn export(&self, spans: &[Span]) {
        let Some(jobs) = &self.jobs else { return };
        let spans: Vec<Span> = spans.iter().filter(|s| s.sampled).cloned().collect();
        let count = spans.len() as u64;
        if count > 0 && jobs.try_send(Job::Spans(spans)).is_err() {
            // The task has warned of what holds it up.
            self.counters.dropped.inc_by(count);
        }
    }

    /// Waits until what was given to it is sent or dropped, for as long as `at_most`. Whether that
    /// was enough.
    pub async fn flush(&self, at_most: Duration) -> bool {
        let Some(jobs) = &self.jobs else { return true };
        let flushed = async {
            let (done, flushed) = oneshot::channel();
            let asked = jobs.send(Job::Flush(done)).await.is_ok();
            asked && flushed.await.is_ok()
        };
        tokio::time::timeout(at_most, flushed)
            .await
            .unwrap_or(false)
    }
}

async fn send_all(
    exporter: SpanExporter,
    endpoint: String,
    mut jobs: mpsc::Receiver<Job>,
    counters: SpanCounters,
) {
    // Said once, until it works again.
    let mut warned = false;
    while let Some(job) = jobs.recv().await {
        let spans = match job {
            Job::Spans(spans) => spans,
            Job::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let count = spans.len() as u64;
        let batch = spans.iter().map(span_data).collect();
        let sent = match tokio::time::timeout(TIMEOUT, exporter.export(batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(wrong)) => Err(wrong.to_string()),
            Err(_) => Err(format!("no answer in {} s", TIMEOUT.as_secs())),
        };
        match sent {
            Ok(()) => {
                counters.exported.inc_by(count);
                if std::mem::take(&mut warned) {
                    tracing::info!(endpoint, "the collector takes spans again");
                }
            }
            Err(wrong) => {
                counters.dropped.inc_by(count);
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(
                        endpoint,
                        wrong,
                        "the collector does not take spans: they are dropped until it does; traces \
                         are kept on this host"
                    );
                }
            }
        }
    }
}

/// Certificates are checked by what this host trusts; without TLS, it need not trust anybody.
fn client(is_https: bool) -> std::io::Result<Arc<dyn HttpClient>> {
    if !is_https {
        return Ok(Arc::new(HyperClient::with_default_connector(TIMEOUT, None)));
    }
    let provider = rustls::crypto::ring::default_provider();
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(provider)?
        .https_only()
        .enable_http1()
        .build();
    Ok(Arc::new(HyperClient::new(connector, TIMEOUT, None)))
}

fn build(config: &TelemetryConfig, endpoint: &str) -> Result<SpanExporter, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("endpoint {endpoint}: {e}");
    let uri: Uri = endpoint.parse().map_err(|e| wrong(&e))?;
    let is_https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong(&"give a URL that begins with http:// or https://")),
    };
    let built = match config.protocol {
        Protocol::Grpc => {
            let builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(TIMEOUT);
            let builder = match is_https {
                true => builder.with_tls_config(ClientTlsConfig::new().with_native_roots()),
                false => builder,
            };
            builder.build()
        }
        Protocol::HttpProtobuf | Protocol::HttpJson => {
            let protocol = match config.protocol {
                Protocol::HttpJson => OtlpProtocol::HttpJson,
                _ => OtlpProtocol::HttpBinary,
            };
            let path = match uri.path() {
                "" | "/" => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
                _ => endpoint.to_owned(),
            };
            SpanExporter::builder()
                .with_http()
                .with_shared_http_client(client(is_https).map_err(|e| wrong(&e))?)
                .with_protocol(protocol)
                .with_endpoint(path)
                .with_timeout(TIMEOUT)
                .build()
        }
    };
    built.map_err(|e| wrong(&e))
}
