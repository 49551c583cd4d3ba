//! The file, read again while the host runs: what is taken over, and what needs a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::load::Source;
use super::problem::ConfigProblems;
use super::types::Config;
use crate::systemd::Notifier;

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its path, as in `limits.outgoing`.
    pub key: String,
    /// What it was; none: nothing was said.
    pub old: Option<Value>,
    /// What it is now.
    pub new: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "nothing".to_owned(),
        };
        write!(
            f,
            "{}: {} -> {}",
            self.key,
            side(&self.old),
            side(&self.new)
        )
    }
}

/// How a configuration differs from the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// What holds from now on.
    pub taken_over: Vec<Change>,
    /// What holds after a restart only.
    pub needs_restart: Vec<Change>,
}

/// The current configuration with what a running host takes over from a fresh one: `[limits]`,
/// `[peers]` and the filter of `[log]`.
#[must_use]
pub fn take_over(current: &Config, fresh: &Config) -> (Config, Difference) {
    let (old, new) = (flat(current), flat(fresh));
    let mut difference = Difference::default();
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let (old, new) = (old.get(key).cloned(), new.get(key).cloned());
        if old == new {
            continue;
        }
        let at_once =
            key.starts_with("limits.") || key.starts_with("peers.") || key == "log.filter";
        let side = if at_once {
            &mut difference.taken_over
        } else {
            &mut difference.needs_restart
        };
        side.push(Change {
            key: key.clone(),
            old,
            new,
        });
    }
    let mut next = current.clone();
    next.limits = fresh.limits.clone();
    next.peers = fresh.peers.clone();
    next.log.filter.clone_from(&fresh.log.filter);
    (next, difference)
}

/// Values by the paths of their keys.
fn flat(config: &Config) -> BTreeMap<String, Value> {
    fn put(path: &str, value: Value, all: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(inner) => {
                for (name, value) in inner {
                    let path = match path {
                        "" => name,
                        path => format!("{path}.{name}"),
                    };
                    put(&path, value, all);
                }
            }
            Value::Null => {}
            value => {
                all.insert(path.to_owned(), value);
            }
        }
    }
    let mut all = BTreeMap::new();
    // Strings, numbers and maps with string keys: there is JSON for all of them.
    put(
        "",
        serde_json::to_value(config).unwrap_or_default(),
        &mut all,
    );
    all
}

/// Reads the configuration again, and hands it on if it is sound; says in the log what came of it.
///
/// # Errors
/// What is wrong with it; then everything stays as it is.
pub fn reload(
    source: &Source,
    holds: &watch::Sender<Arc<Config>>,
) -> Result<Difference, ConfigProblems> {
    let fresh = source.load().inspect_err(|problems| {
        tracing::error!("the configuration stays as it was: the file is not sound\n{problems}");
    })?;
    let (next, difference) = take_over(&holds.borrow(), &fresh);
    for change in &difference.taken_over {
        tracing::info!("configuration: {change}");
    }
    for change in &difference.needs_restart {
        tracing::warn!("configuration: takes a restart: {change}");
    }
    if difference == Difference::default() {
        tracing::info!("configuration: nothing has changed");
    }
    if !difference.taken_over.is_empty() {
        holds.send_replace(Arc::new(next));
    }
    Ok(difference)
}

/// Does so on each SIGHUP, for as long as it is polled; the service manager is told. From its first
/// poll on, SIGHUP does not end the process any more.
///
/// # Errors
/// Signals cannot be listened for.
pub async fn watch_limits(
    source: Source,
    holds: watch::Sender<Arc<Config>>,
    notifier: Notifier,
) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        notifier.reloading();
        let (source, holds) = (source.clone(), holds.clone());
        // Files are read, and certificates checked: not on a thread that serves requests.
        let outcome = tokio::task::spawn_blocking(move || reload(&source, &holds)).await;
        notifier.ready(match outcome {
            Ok(Ok(_)) => "running",
            _ => "running; the last reload was refused, see the log",
        });
    }
    Ok(())
}
