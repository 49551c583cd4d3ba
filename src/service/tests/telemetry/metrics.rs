//! The page of metrics: what is on it, and that Prometheus' own tool has nothing against it.

use std::io::Write;
use std::process::{Command, Stdio};

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

#[test]
fn migrations_of_all_outcomes_are_counted() {
    run(async {
        let metrics = Metrics::new().unwrap();
        observe(&metrics, &sides::completed().await);
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
            "vmferry_wire_bytes_total",
            "vmferry_pages_total{kind=\"sent\"}",
            "vmferry_pages_total{kind=\"zero\"}",
            "vmferry_storage_jobs_total{fate=\"unsettled\"}",
            "vmferry_storage_jobs_total{fate=\"reissued\"}",
        ] {
            assert!(value(&text, more) > 0.0, "{more}");
        }
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
    let text = Metrics::new().unwrap().text();
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
