//! Names, labels and buckets of all metrics.

use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, Result, core::Collector,
};
use vmferry_codecs::selector::Why;

use super::super::export::SpanCounters;
use crate::model::VmState;

const WAYS: [&str; 2] = ["outgoing", "incoming"];
const OUTCOMES: [&str; 4] = ["completed", "cancelled", "failed", "undecided"];

/// A millisecond to ten seconds: what applications do not notice, and what they do.
const BLACKOUT: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Ten milliseconds to a minute of lost work.
const BROWNOUT: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// A tenth of a second to three hours.
const DURATION: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0,
];

#[derive(Debug)]
pub(super) struct Families {
    pub(super) migrations: IntCounterVec,
    pub(super) running: IntGaugeVec,
    pub(super) queued: IntGauge,
    pub(super) duration: HistogramVec,
    pub(super) blackout: Histogram,
    pub(super) brownout: Histogram,
    pub(super) encoded: IntCounterVec,
    pub(super) plain: IntCounterVec,
    pub(super) codec_pages: IntCounterVec,
    pub(super) codec_seconds: CounterVec,
    pub(super) choices: IntCounterVec,
    pub(super) wire: IntCounter,
    pub(super) pages: IntCounterVec,
    pub(super) notifications: IntCounter,
    pub(super) stall: Counter,
    pub(super) jobs: IntCounterVec,
    pub(super) fences: IntGauge,
    pub(super) vms: IntGaugeVec,
    pub(super) ram: Gauge,
    pub(super) link: Gauge,
    pub(super) compressors: IntGauge,
    pub(super) limit_migrations: IntGaugeVec,
    pub(super) limit_link: Gauge,
    pub(super) limit_compressors: IntGauge,
    pub(super) limit_vms: IntGauge,
    pub(super) limit_ram: Gauge,
    pub(super) spans: SpanCounters,
}

impl Families {
    pub(super) fn register(to: &Registry) -> Result<Self> {
        let add = Add(to);
        let info = add.gauges(
            "vmferry_build_info",
            "Version of the software.",
            &["version"],
        )?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let this = Self {
            migrations: add.counters(
                "vmferry_migrations_total",
                "Migrations that have ended, by way and outcome.",
                &["direction", "outcome"],
            )?,
            running: add.gauges(
                "vmferry_migrations_running",
                "Migrations under way.",
                &["direction"],
            )?,
            queued: add.gauge("vmferry_migrations_queued", "Migrations that wait.")?,
            duration: add.histograms(
                "vmferry_migration_duration_seconds",
                "Outgoing migrations from begin to end.",
                DURATION,
                &["outcome"],
            )?,
            blackout: add.histogram(
                "vmferry_blackout_seconds",
                "Pauses of guests in completed outgoing migrations.",
                BLACKOUT,
            )?,
            brownout: add.histogram(
                "vmferry_brownout_seconds",
                "How long guests were held up before the pause: writers by notifications, vCPUs for want of a processor.",
                BROWNOUT,
            )?,
            encoded: add.counters(
                "vmferry_encoded_bytes_total",
                "Page content as encoded, by codec with its level.",
                &["codec"],
            )?,
            plain: add.counters(
                "vmferry_plain_bytes_total",
                "The same page content before it was encoded, by codec with its level.",
                &["codec"],
            )?,
            codec_pages: add.counters(
                "vmferry_codec_pages_total",
                "Pages whose content was encoded, by codec with its level.",
                &["codec"],
            )?,
            codec_seconds: add.seconds_by(
                "vmferry_codec_processor_seconds_total",
                "Processor time of compressors, by codec with its level.",
                &["codec"],
            )?,
            choices: add.counters(
                "vmferry_codec_choices_total",
                "Chunks of pages that were encoded, by why their codec was chosen.",
                &["reason"],
            )?,
            wire: add.counter(
                "vmferry_wire_bytes_total",
                "Bytes on page streams that were sent, before TLS.",
            )?,
            pages: add.counters(
                "vmferry_pages_total",
                "Pages, by what was done: content sent, told to be zero, left out as unchanged.",
                &["kind"],
            )?,
            notifications: add.counter(
                "vmferry_write_notifications_total",
                "Write notifications that guests paid for.",
            )?,
            stall: add.seconds(
                "vmferry_write_stall_seconds_total",
                "How long writers of guests waited for write notifications.",
            )?,
            jobs: add.counters(
                "vmferry_storage_jobs_total",
                "Storage requests in flight at a switchover: handed over as cancelled or as \
                 unsettled, and issued again here.",
                &["fate"],
            )?,
            fences: add.gauge(
                "vmferry_storage_fences_open",
                "Writes of former hosts that are not settled.",
            )?,
            vms: add.gauges("vmferry_vms", "Machines, by state.", &["state"])?,
            ram: add.number("vmferry_vm_memory_bytes", "RAM of all machines.")?,
            link: add.number(
                "vmferry_link_bytes_per_second",
                "Throughput of all outgoing migrations.",
            )?,
            compressors: add.gauge(
                "vmferry_compressor_threads",
                "Compressor threads of all outgoing migrations.",
            )?,
            limit_migrations: add.gauges(
                "vmferry_migrations_limit",
                "Most migrations at once.",
                &["direction"],
            )?,
            limit_link: add.number(
                "vmferry_link_limit_bytes_per_second",
                "Most that all outgoing migrations may send; zero is no limit.",
            )?,
            limit_compressors: add.gauge(
                "vmferry_compressor_threads_limit",
                "Most compressor threads; zero is as many as processors.",
            )?,
            limit_vms: add.gauge("vmferry_vms_limit", "Most machines.")?,
            limit_ram: add.number(
                "vmferry_vm_memory_limit_bytes",
                "Most RAM of all machines; zero is no limit.",
            )?,
            spans: SpanCounters {
                exported: add.counter(
                    "vmferry_spans_exported_total",
                    "Spans that the collector has taken.",
                )?,
                dropped: add.counter(
                    "vmferry_spans_dropped_total",
                    "Spans that the collector has not taken; they are on this host's disk.",
                )?,
            },
        };
        this.begin();
        Ok(this)
    }

    /// Series that are known from the start are there from the start.
    fn begin(&self) {
        for way in WAYS {
            self.running.with_label_values(&[way]);
            self.limit_migrations.with_label_values(&[way]);
            for outcome in OUTCOMES {
                self.migrations.with_label_values(&[way, outcome]);
            }
        }
        for outcome in OUTCOMES {
            self.duration.with_label_values(&[outcome]);
        }
        for kind in ["sent", "zero", "unchanged"] {
            self.pages.with_label_values(&[kind]);
        }
        for reason in Why::ALL {
            self.choices.with_label_values(&[reason.name()]);
        }
        for fate in ["cancelled", "unsettled", "reissued"] {
            self.jobs.with_label_values(&[fate]);
        }
        for state in VmState::ALL.map(VmState::name) {
            self.vms.with_label_values(&[state]);
        }
    }
}

/// Makes and registers.
struct Add<'a>(&'a Registry);

impl Add<'_> {
    fn register<T: Collector + Clone + 'static>(&self, made: Result<T>) -> Result<T> {
        let made = made?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::new(name, help))
    }

    fn seconds(&self, name: &str, help: &str) -> Result<Counter> {
        self.register(Counter::new(name, help))
    }

    fn seconds_by(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec> {
        self.register(CounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::new(name, help))
    }

    fn number(&self, name: &str, help: &str) -> Result<Gauge> {
        self.register(Gauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }
}
