//! What the world is told of migrations that are over, and of the host: traces and metrics.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use vmferry_engine::Budget;
use vmferry_protocol::ids::MigrationId;
use vmferry_vmm::api::{Answer, Request};

use super::entry::Entry;
use super::migrations::{self, Account, Kept};
use super::{Inner, Result, facts, lock};
use crate::model::{Direction, MigrationState};
use crate::telemetry::metrics::Load;
use crate::telemetry::otlp::{Origin, merge, to_otlp_json};
use crate::telemetry::{Exporter, Metrics, MigrationRecord, Story, TelemetryConfig, spans};

/// How long another host may take to tell its part of a trace, and a VM process how it is.
const ASK_WITHIN: Duration = Duration::from_secs(3);

/// How long the end of a migration is waited for, by whoever wants its trace.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Where it is told.
#[derive(Debug)]
pub(super) struct Telling {
    pub(super) exporter: Exporter,
    metrics: Metrics,
    origin: Origin,
}

impl Telling {
    /// # Errors
    /// In words: the configuration makes no sense.
    pub(super) fn start(config: &TelemetryConfig, host: &str) -> std::result::Result<Self, String> {
        let metrics = Metrics::new()?;
        Ok(Self {
            exporter: Exporter::start(config, host, metrics.spans())?,
            metrics,
            origin: config.origin(host),
        })
    }
}

/// What happened, as far as somebody tells.
fn story(kept: &Kept, account: Account<'_>) -> Option<Story> {
    let m = &kept.migration;
    Some(match (account, m.direction) {
        (Account::Source(report), _) => Story::Source(Box::new(report.clone())),
        (Account::Destination(timeline), _) => Story::Destination {
            timeline: Box::new(timeline.clone()),
            failure: match m.state {
                MigrationState::Completed => None,
                _ => Some(m.reason.clone().unwrap_or_default()),
            },
        },
        (Account::None, Direction::Outgoing) => Story::Unreported {
            asked_unix_us: m.asked_ms * 1000,
            ended_unix_us: m.ended_ms.unwrap_or(m.asked_ms) * 1000,
            reason: m.reason.clone().unwrap_or_default(),
            state: m.state,
        },
        (Account::None, Direction::Incoming) => return None,
    })
}

fn record(host: &str, kept: &Kept, story: Story) -> Option<MigrationRecord> {
    let m = &kept.migration;
    let parent = match &story {
        Story::Destination { timeline, .. } => {
            timeline.traceparent.as_ref().or(m.traceparent.as_ref())
        }
        _ => kept.parent.as_ref(),
    };
    Some(MigrationRecord {
        migration: m.id.parse::<MigrationId>().ok()?,
        vm: m.vm.clone(),
        host: host.to_owned(),
        peer: m.peer.clone(),
        parent: parent.and_then(|p| p.parse().ok()),
        clock_ahead_ms: kept.clock_ahead_ms,
        preflight: kept.preflight.clone(),
        story,
    })
}

impl Inner {
    /// Counts a migration that is over, keeps its trace, and sends it to a collector.
    pub(super) fn tell_world(&self, kept: &Kept, account: Account<'_>) {
        let (telling, metrics) = (&self.telling, &self.telling.metrics);
        let state = kept.migration.state;
        match account {
            Account::Source(report) => metrics.observe_migration(report),
            Account::Destination(timeline) => {
                metrics.observe_arrival(timeline, state != MigrationState::Completed);
            }
            Account::None => metrics.observe_unreported(kept.migration.direction, state),
        }
        let story = story(kept, account);
        let Some(record) = story.and_then(|s| record(&self.config.name, kept, s)) else {
            return;
        };
        let spans = spans(&record);
        telling.exporter.export(&spans);
        match to_otlp_json(&telling.origin, &spans) {
            Ok(trace) => {
                let path = self.store.migration(&kept.migration.id, migrations::TRACE);
                self.store.write_later(path, &trace);
            }
            Err(error) => tracing::error!(%error, "a trace cannot be kept"),
        }
    }

    /// The trace of a migration as OTLP JSON: what this host has of it, and at the source also
    /// what the other host has, where that answers.
    pub(super) async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        // Hosts learn of the end one after the other: who asks for it is a little early at times.
        let _ = timeout(END_WITHIN, self.until_over(id)).await;
        self.store.written().await;
        let own: serde_json::Value = self.kept_file(id, migrations::TRACE).await?;
        let migration = self.migration(id)?;
        // The source asks the destination, never the other way: they would ask for ever.
        if migration.direction == Direction::Incoming {
            return Ok(own);
        }
        let Ok(peer) = self.peer(&migration.peer) else {
            return Ok(own);
        };
        Ok(match timeout(ASK_WITHIN, peer.trace(id)).await {
            Ok(Ok(there)) => merge([own, there]),
            _ => own,
        })
    }

    /// Metrics as they are now, as Prometheus reads them.
    pub(super) async fn metrics(&self) -> String {
        let metrics = &self.telling.metrics;
        let entries = self.entries();
        metrics.set_vms(entries.iter().map(|entry| entry.state()));
        let fences = join_all(entries.iter().map(|entry| fences(entry))).await;
        metrics.set_fences_open(fences.into_iter().sum());
        let ram_mib = self.load(entries.iter()).ram_mib;
        let (running, queued) = lock(&self.migrations).admission.counts();
        metrics.set_migrations(running, self.incoming() as u32, queued);
        let limits = self.limits();
        metrics.set_limits(&limits);
        let all = lock(&self.migrations).list();
        let sending = || {
            let running = all.iter().filter(|m| m.state == MigrationState::Running);
            running.filter(|m| m.direction == Direction::Outgoing)
        };
        let budget = self.budget();
        let compressors = tokio::task::spawn_blocking(move || budget.in_use()).await;
        metrics.set_load(&Load {
            vm_ram_bytes: ram_mib << 20,
            link_bytes_per_second: sending()
                .filter_map(|m| m.progress.as_ref())
                .fold(0.0, |sum, p| sum + p.bytes_per_second),
            // Each has one beside those that the budget counts.
            compressors: (compressors.unwrap_or(0) + sending().count()) as u64,
        });
        metrics.text()
    }

    /// Compressors of all migrations from here.
    pub(super) fn budget(&self) -> Budget {
        let most = self.limits().compressors as usize;
        Budget {
            dir: self.store.path("compressors"),
            slots: if most == 0 { facts::processors() } else { most },
        }
    }
}

/// Writes of a former host that a VM's disks wait for.
async fn fences(entry: &Entry) -> u64 {
    let Ok(client) = entry.client() else { return 0 };
    match timeout(ASK_WITHIN, client.call(Request::Storage)).await {
        Ok(Ok(Answer::Storage(disks))) => disks.fences,
        _ => 0,
    }
}
