//! The page of metrics: what is on it, and that Prometheus' own tool has nothing against it.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;
use vmferry_engine::report::MigrationReport;
use vmferry_service::model::{Direction, Limits, MigrationState, VmState};
use vmferry_service::telemetry::metrics::Load;
use vmferry_service::telemetry::{Metrics, Story};
use vmferry_tests::engine::run;

use super::sides::{self, Sides};

fn observe(metrics: &Metrics, sides: &Sides) {
    for record in [&sides.source, &sides.destination] {
        match &record.story {
            Story::Source(report) => metrics.observe_migration(report),
            Story::Unreported { state, .. } => {
                metrics.observe_unreported(Direction::Outgoing, *state);
            }
            Story::Destination { timeline, failure } => {
                metrics.observe_arrival(timeline, failure.is_some());
            }
        }
    }
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.trim().parse().unwrap()
}

/// All series of a family together.
fn sum(text: &str, family: &str) -> f64 {
    let series = text.lines().filter_map(|l| l.strip_prefix(family));
    let series = series.filter(|l| l.starts_with('{'));
    series
        .map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// A migration of two passes and the begin of a third, as its VM process tells of it.
fn made_up() -> MigrationReport {
    let codec = |pages: u64, bytes: u64, processor_ms: f64| {
        json!({
            "chunks": 2, "pages": pages, "bytes": bytes, "processor_ms": processor_ms,
            "ratio": bytes as f64 / (pages * 4096) as f64,
        })
    };
    let pass = |n: u32, sent: u64, codecs: serde_json::Value, choices: serde_json::Value| {
        json!({
            "pass": n, "duration_ms": 100.0, "pages_considered": 600, "pages_sent": sent,
            "pages_unchanged": 0, "pages_deferred": 0, "notifications": 0, "bytes_wire": 1 << 20,
            "codecs": codecs, "choices": choices, "final": n == 2,
        })
    };
    let first = pass(
        1,
        513,
        json!({"zstd:1": codec(400, 500_000, 250.0), "raw": codec(100, 409_600, 0.0),
               "rar": codec(13, 1000, -1.0)}),
        json!({"link": 7, "trial": 1, "because": 2}),
    );
    let second = pass(
        2,
        60,
        json!({"zstd:1": codec(50, 60_000, 500.0), "delta": codec(10, 2000, 125.0)}),
        json!({"link": 2, "difference": 3}),
    );
    let cut = pass(
        3,
        8,
        json!({"lz4": codec(8, 16_384, 62.5)}),
        json!({"too-slow": 1}),
    );
    serde_json::from_value(json!({
        "migration_id": "0".repeat(32), "outcome": "failed", "reason": "made up",
        "machine": "process", "transport": "quic", "streams": 2, "tracker": "wp-group",
        "codec": "auto", "vcpus": 1, "ram_bytes": 1 << 30, "total_ms": 300.0,
        "passes": [first, second], "pass_cut": cut, "bytes_memory": (581 + 19) * 4096,
        "bytes_wire": 3 << 20, "pages_zero": 19, "pages_unchanged": 0, "decisions": [],
        "bytes_by_codec": {"zstd": 560_000, "raw": 409_600, "delta": 2000, "lz4": 16_384},
        "notifications": {"answered": 0, "pages_released": 0, "stall_ms": 0.0,
            "longest_stall_ms": 0.0, "throttled_ms": 0.0},
        "vcpu_run_delay_ms": 0.0, "guest": {}, "peak_extra_rss_bytes": 0,
    }))
    .unwrap()
}

#[test]
fn compression_is_counted_by_codec_and_reason() {
    let metrics = Metrics::new().unwrap();
    metrics.observe_migration(&made_up());
    let text = metrics.text();
    for (codec, pages, bytes, seconds) in [
        ("zstd:1", 450.0, 560_000.0, 0.75),
        ("raw", 100.0, 409_600.0, 0.0),
        ("delta", 10.0, 2000.0, 0.125),
        ("lz4", 8.0, 16_384.0, 0.0625),
        ("unknown", 13.0, 1000.0, 0.0),
    ] {
        for (family, expected) in [
            ("vmferry_codec_pages_total", pages),
            ("vmferry_plain_bytes_total", pages * 4096.0),
            ("vmferry_encoded_bytes_total", bytes),
            ("vmferry_codec_processor_seconds_total", seconds),
        ] {
            let series = format!("{family}{{codec=\"{codec}\"}}");
            assert_eq!(value(&text, &series), expected, "{series}");
        }
    }
    assert!(!text.contains("\"rar\"") && !text.contains("codec=\"zstd\""));
    let sent = value(&text, "vmferry_pages_total{kind=\"sent\"}");
    assert_eq!(sent, 581.0);
    assert_eq!(sum(&text, "vmferry_codec_pages_total"), sent);
    for (reason, chunks) in [
        ("link", 9.0),
        ("trial", 1.0),
        ("difference", 3.0),
        ("too-slow", 1.0),
        ("unknown", 2.0),
        ("saves", 0.0),
    ] {
        let series = format!("vmferry_codec_choices_total{{reason=\"{reason}\"}}");
        assert_eq!(value(&text, &series), chunks, "{series}");
    }
    lint(&text);
}

#[test]
fn migrations_of_all_outcomes_are_counted() {
    run(async {
        let metrics = Metrics::new().unwrap();
        observe(&metrics, &sides::completed().await);
        // All that was sent, and nothing besides.
        let text = metrics.text();
        let sent = value(&text, "vmferry_pages_total{kind=\"sent\"}");
        assert!(sent > 0.0, "{text}");
        assert_eq!(sum(&text, "vmferry_codec_pages_total"), sent, "{text}");
        let plain = sum(&text, "vmferry_plain_bytes_total");
        assert_eq!(plain, sent * 4096.0, "{text}");
        let encoded = sum(&text, "vmferry_encoded_bytes_total");
        assert!(encoded > 0.0 && encoded <= plain, "{text}");
        observe(&metrics, &sides::cancelled().await);
        observe(&metrics, &sides::failed().await);
        metrics.observe_unreported(Direction::Outgoing, MigrationState::Undecided);
        metrics.observe_unreported(Direction::Incoming, MigrationState::Failed);
        metrics.set_migrations(1, 2, 3);
        metrics.set_vms([VmState::Running, VmState::Running, VmState::Settling]);
        metrics.set_fences_open(4);
        metrics.set_limits(&Limits {
            link_mbit: 80,
            ..Limits::default()
        });
        metrics.set_load(&Load {
            vm_ram_bytes: 64 << 20,
            link_bytes_per_second: 1e6,
            compressors: 2,
        });
        let text = metrics.text();
        for (way, outcome, count) in [
            ("outgoing", "completed", 1.0),
            ("outgoing", "cancelled", 1.0),
            ("outgoing", "failed", 1.0),
            ("outgoing", "undecided", 1.0),
            ("incoming", "completed", 1.0),
            ("incoming", "cancelled", 1.0),
            ("incoming", "failed", 2.0),
        ] {
            let series =
                format!("vmferry_migrations_total{{direction=\"{way}\",outcome=\"{outcome}\"}}");
            assert_eq!(value(&text, &series), count, "{series}");
        }
        for (series, expected) in [
            ("vmferry_blackout_seconds_count", 1.0),
            ("vmferry_migrations_running{direction=\"incoming\"}", 2.0),
            ("vmferry_migrations_queued", 3.0),
            ("vmferry_vms{state=\"running\"}", 2.0),
            ("vmferry_vms{state=\"crashed\"}", 0.0),
            ("vmferry_storage_fences_open", 4.0),
            ("vmferry_link_limit_bytes_per_second", 1e7),
            ("vmferry_compressor_threads", 2.0),
        ] {
            assert_eq!(value(&text, series), expected, "{series}");
        }
        for more in [
            "vmferry_encoded_bytes_total{codec=\"lz4\"}",
            "vmferry_plain_bytes_total{codec=\"lz4\"}",
            "vmferry_codec_pages_total{codec=\"lz4\"}",
            "vmferry_codec_processor_seconds_total{codec=\"lz4\"}",
            "vmferry_wire_bytes_total",
            "vmferry_pages_total{kind=\"sent\"}",
            "vmferry_pages_total{kind=\"zero\"}",
            "vmferry_storage_jobs_total{fate=\"unsettled\"}",
            "vmferry_storage_jobs_total{fate=\"reissued\"}",
        ] {
            assert!(value(&text, more) > 0.0, "{more}");
        }
        assert!(sum(&text, "vmferry_codec_choices_total") > 0.0, "{text}");
        assert!(!text.contains("\"unknown\""), "{text}");
        lint(&text);
    });
}

/// Debian's package `prometheus` has it.
fn lint(text: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(e) => {
            println!("SKIPPED: promtool did not look at the metrics ({e}): install prometheus");
            return;
        }
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr) + String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && words.trim().is_empty(), "{words}");
}

#[test]
fn the_documentation_names_every_metric() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let metrics = Metrics::new().unwrap();
    // Families without a series are not on the page.
    metrics.observe_migration(&made_up());
    let text = metrics.text();
    let named = text.lines().filter_map(|l| l.strip_prefix("# HELP "));
    let names: Vec<&str> = named.filter_map(|l| l.split(' ').next()).collect();
    assert!(names.len() > 15, "{text}");
    for name in names {
        assert!(
            docs.contains(&format!("`{name}`")),
            "docs/operations.md lacks {name}"
        );
    }
}
