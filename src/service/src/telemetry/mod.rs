//! What a host tells the world of its migrations: traces and metrics.
//!
//! Nothing is measured here. Each side's VM process reports when what happened; from that,
//! [`spans::spans`] builds that side's spans, after the fact. Ids are derived from the migration's
//! id, so the two sides' spans are one trace though they never talk about it. [`export::Exporter`]
//! sends spans to a collector and never makes anybody wait; They are kept on disk in any case. [`metrics::Metrics`] counts.

pub mod export;
pub mod jaeger;
pub mod metrics;
pub mod otlp;
pub mod record;
pub mod span;
pub mod spans;

pub use export::{Exporter, Protocol, TelemetryConfig};
pub use metrics::Metrics;
pub use record::{MigrationRecord, PreflightTimes, Story};
pub use span::Span;
pub use spans::{migration_context, spans};
