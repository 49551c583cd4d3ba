//! Counters, gauges and histograms of a host, as Prometheus reads them. Fed by plain calls.
//!
//! docs/operations.md lists the names.

mod compression;
mod families;

use std::collections::BTreeMap;

use prometheus::{Registry, TextEncoder};
use vmferry_engine::report::{DestinationTimeline, MigrationReport};
use vmferry_protocol::PAGE_SIZE;

use super::export::SpanCounters;
use crate::model::{Direction, Limits, MigrationState, VmState};
use families::Families;

/// What of its limits a host uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// RAM of all machines, in bytes.
    pub vm_ram_bytes: u64,
    /// Throughput of all outgoing migrations, in bytes a second.
    pub link_bytes_per_second: f64,
    /// Compressor threads of all outgoing migrations.
    pub compressors: u64,
}

/// The metrics of a host.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// In words; not for the names of this project.
    pub fn new() -> Result<Self, String> {
        let registry = Registry::new();
        let families = Families::register(&registry)
            .map_err(|e| format!("metrics cannot be registered: {e}"))?;
        Ok(Self { registry, families })
    }

    /// For the exporter of spans.
    #[must_use]
    pub fn spans(&self) -> SpanCounters {
        self.families.spans.clone()
    }

    /// A migration away from here has ended.
    pub fn observe_migration(&self, report: &MigrationReport) {
        let f = &self.families;
        let outcome = report.outcome.name();
        f.migrations.with_label_values(&["outgoing", outcome]).inc();
        let seconds = report.total_ms / 1e3;
        f.duration.with_label_values(&[outcome]).observe(seconds);
        if let Some(ms) = report.blackout_ms {
            f.blackout.observe(ms / 1e3);
        }
        let held_up_ms = report.notifications.stall_ms + report.vcpu_run_delay_ms;
        f.brownout.observe(held_up_ms.max(0.0) / 1e3);
        f.count_compression(report);
        f.wire.inc_by(report.bytes_wire);
        let content = report.bytes_memory / PAGE_SIZE;
        for (kind, pages) in [
            ("sent", content.saturating_sub(report.pages_zero)),
            ("zero", report.pages_zero),
            ("unchanged", report.pages_unchanged),
        ] {
            f.pages.with_label_values(&[kind]).inc_by(pages);
        }
        f.notifications.inc_by(report.notifications.answered);
        f.stall.inc_by(report.notifications.stall_ms.max(0.0) / 1e3);
        if let Some(io) = &report.io {
            f.jobs
                .with_label_values(&["cancelled"])
                .inc_by(io.cancelled);
            f.jobs
                .with_label_values(&["unsettled"])
                .inc_by(io.unsettled);
        }
    }

    /// A migration has ended, and no VM process tells how: it had not begun, or the process died.
    pub fn observe_unreported(&self, direction: Direction, state: MigrationState) {
        let way = match direction {
            Direction::Outgoing => "outgoing",
            Direction::Incoming => "incoming",
        };
        let migrations = &self.families.migrations;
        migrations.with_label_values(&[way, state.name()]).inc();
    }

    /// A migration to here has ended; `failed` where nothing arrived.
    pub fn observe_arrival(&self, timeline: &DestinationTimeline, failed: bool) {
        let f = &self.families;
        let outcome = match (failed, timeline.cancelled) {
            (false, _) => "completed",
            (true, true) => "cancelled",
            (true, false) => "failed",
        };
        f.migrations.with_label_values(&["incoming", outcome]).inc();
        let reissued = f.jobs.with_label_values(&["reissued"]);
        reissued.inc_by(timeline.jobs_reissued);
    }

    /// Migrations now.
    pub fn set_migrations(&self, outgoing: u32, incoming: u32, queued: u32) {
        let f = &self.families;
        let running = |way| f.running.with_label_values(&[way]);
        running("outgoing").set(i64::from(outgoing));
        running("incoming").set(i64::from(incoming));
        f.queued.set(i64::from(queued));
    }

    /// All machines of this host, by how they are.
    pub fn set_vms(&self, states: impl IntoIterator<Item = VmState>) {
        let mut counts: BTreeMap<VmState, i64> = BTreeMap::new();
        for state in states {
            *counts.entry(state).or_default() += 1;
        }
        for state in VmState::ALL {
            let count = counts.get(&state).copied().unwrap_or(0);
            let vms = &self.families.vms;
            vms.with_label_values(&[state.name()]).set(count);
        }
    }

    /// Writes of former hosts that are not settled, of all machines together.
    pub fn set_fences_open(&self, fences: u64) {
        let fences = i64::try_from(fences).unwrap_or(i64::MAX);
        self.families.fences.set(fences);
    }

    /// What this host allows; zero is no limit.
    pub fn set_limits(&self, limits: &Limits) {
        let f = &self.families;
        let migrations = |way| f.limit_migrations.with_label_values(&[way]);
        migrations("outgoing").set(i64::from(limits.outgoing));
        migrations("incoming").set(i64::from(limits.incoming));
        f.limit_link.set(limits.link_mbit as f64 * 1e6 / 8.0);
        f.limit_compressors.set(i64::from(limits.compressors));
        f.limit_vms.set(i64::from(limits.vms));
        f.limit_ram.set(limits.vm_ram_mib as f64 * 1_048_576.0);
    }

    /// What of that is used.
    pub fn set_load(&self, load: &Load) {
        let f = &self.families;
        f.ram.set(load.vm_ram_bytes as f64);
        f.link.set(load.link_bytes_per_second);
        let threads = i64::try_from(load.compressors).unwrap_or(i64::MAX);
        f.compressors.set(threads);
    }

    /// All of it, in Prometheus' text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let encoded = TextEncoder::new().encode_to_string(&self.registry.gather());
        encoded.unwrap_or_else(|wrong| {
            tracing::error!(%wrong, "metrics cannot be written");
            String::new()
        })
    }
}
