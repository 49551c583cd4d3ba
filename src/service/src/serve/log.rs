//! The log, on standard error; its filter can be changed.

use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// What is logged from now on.
pub(super) struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// A filter that makes no sense changes nothing; configurations are checked before.
    pub(super) fn set(&self, filter: &str) {
        let set = EnvFilter::try_new(filter).map(|filter| self.0.reload(filter));
        if !matches!(set, Ok(Ok(()))) {
            tracing::error!(filter, "what is logged stays as it was");
        }
    }
}

/// Begins to log. Once in a process.
pub(super) fn start(config: &Log) -> Filter {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.filter));
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().with_ansi(false).boxed(),
    };
    // Where there is a log already, as in tests, it stays.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
    Filter(handle)
}
