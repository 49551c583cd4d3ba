//! What each tracker costs a guest while it is copied: whole moves by `vmferry demo`, tracker
//! beside tracker in turn, the same guest, link and number of passes. Prints medians and the
//! ratios between them; writes its data as JSON and the plot of docs/tracking.md as SVG.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin trackers`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use vmferry_benches::bars::{self, Judged, judged};
use vmferry_benches::demo::{Demo, median, number};
use vmferry_benches::plot::{self, Bar};

/// Trackers that are compared; the first is the one that the bars are about.
const TRACKERS: [&str; 5] = ["wp-group", "kvm-log", "kvm-ring", "wp-async", "auto"];
/// Work that `wp-group` may cost, as a share of what `kvm-log` costs.
const OF_KVM_LOG: f64 = 1.0 / 20.0;
/// Speed that a guest may lose in pre-copy, in per cent.
const BROWNOUT_PCT: f64 = 7.0;
const READMOSTLY_PCT: f64 = 5.0;
/// Bytes that `wp-group` may send, as a share of what `kvm-log` sends.
const BYTES: f64 = 1.02;
/// The same after the first pass, for a guest that writes back what is there.
const BYTES_SAME: f64 = 0.1;
/// What `auto` may cost beyond the best tracker: a tenth of that, or what two moves with the same
/// tracker differ by, in percentage points of the guest's speed.
const AUTO_MORE: f64 = 0.1;
const AUTO_NOISE_PCT: f64 = 1.0;
/// Reading what may have changed in the blackout, in milliseconds of all threads together.
const SCAN_MS: f64 = 3.0;
/// Blackout with `wp-group`, as a share of that with `kvm-log`, and beyond it.
const BLACKOUT: f64 = 1.0;
const BLACKOUT_MORE_MS: f64 = 1.0;

#[derive(Debug, Parser)]
struct Args {
    /// Moves for each tracker and workload
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Guests that are moved
    #[arg(long, value_delimiter = ',', value_parser = CASES.map(|c| c.name), default_values = CASES.map(|c| c.name))]
    cases: Vec<String>,
    /// Trackers that are compared
    #[arg(long, value_delimiter = ',', value_parser = TRACKERS, default_values = TRACKERS)]
    trackers: Vec<String>,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// Write the data here; cases that the file has, and that are not measured, stay in it
    #[arg(long)]
    data: Option<PathBuf>,
    /// Write the plot here
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A guest, and how it is moved.
struct Case {
    name: &'static str,
    args: &'static [&'static str],
}

/// Two GiB, a link on which a pass takes more than a second, and four passes whatever the policy
/// would say, so that all trackers are asked for the same. Not compressed, over TCP: the
/// destination is on this machine too, and would take the guest's processor.
const COMMON: &[&str] = &[
    "--mem",
    "2G",
    "--link-mbit",
    "1500",
    "--min-passes",
    "4",
    "--max-blackout",
    "30s",
    "--codec",
    "raw",
    "--transport",
    "tcp",
    "--warm-up",
    "2s",
    "--run-for",
    "0s",
    "--vcpus",
    "1",
];

const CASES: [Case; 5] = [
    Case {
        name: "dense",
        args: &["--workload", "dense", "--ws-mib", "256", "--rate", "0"],
    },
    Case {
        name: "dense-slow",
        args: &["--workload", "dense", "--ws-mib", "64", "--rate", "20000"],
    },
    Case {
        name: "readmostly",
        args: &["--workload", "readmostly", "--ws-mib", "256", "--rate", "0"],
    },
    Case {
        name: "sparse",
        args: &[
            "--workload",
            "sparse",
            "--ws-mib",
            "256",
            "--stride",
            "2M",
            "--rate",
            "0",
        ],
    },
    Case {
        name: "rewrite-same",
        args: &[
            "--workload",
            "rewrite-same",
            "--ws-mib",
            "64",
            "--rate",
            "20000",
        ],
    },
];

/// What was measured of a case with a tracker.
#[derive(Default)]
struct Figures {
    lost_ms: Vec<f64>,
    brownout_pct: Vec<f64>,
    bytes: Vec<f64>,
    bytes_later: Vec<f64>,
    blackout_ms: Vec<f64>,
    scan_ms: Vec<f64>,
    notifications: Vec<f64>,
    stall_ms: Vec<f64>,
    run_delay_ms: Vec<f64>,
}

impl Figures {
    fn add(&mut self, report: &Value) -> Result<(), String> {
        self.lost_ms
            .push(number(report, "/guest/brownout_lost_ms")?);
        self.brownout_pct
            .push(number(report, "/guest/brownout_pct")?);
        self.bytes.push(number(report, "/bytes_wire")?);
        self.blackout_ms.push(number(report, "/blackout_ms")?);
        let passes = report["passes"].as_array().ok_or("no passes")?;
        let later = passes
            .iter()
            .skip(1)
            .filter_map(|p| p["bytes_wire"].as_f64());
        self.bytes_later.push(later.sum());
        let last = passes.last().ok_or("no last pass")?;
        self.scan_ms.push(number(last, "/read_ms")?);
        self.stall_ms
            .push(number(report, "/notifications/stall_ms")?);
        self.run_delay_ms
            .push(number(report, "/vcpu_run_delay_ms")?);
        let notifications = passes.iter().filter_map(|p| p["notifications"].as_f64());
        self.notifications.push(notifications.sum());
        Ok(())
    }

    fn medians(&self) -> Value {
        json!({
            "brownout_lost_ms": median(&self.lost_ms),
            "brownout_lost_ms_all": self.lost_ms,
            "brownout_pct": median(&self.brownout_pct),
            "bytes_wire": median(&self.bytes),
            "bytes_wire_after_pass_1": median(&self.bytes_later),
            "blackout_ms": median(&self.blackout_ms),
            "scan_in_blackout_ms": median(&self.scan_ms),
            "notifications": median(&self.notifications),
            "stall_ms": median(&self.stall_ms),
            "vcpu_run_delay_ms": median(&self.run_delay_ms),
        })
    }
}

type Results = BTreeMap<String, BTreeMap<String, Value>>;

/// What the file has already.
fn before(data: Option<&Path>) -> Result<Results, String> {
    match data {
        Some(path) if path.exists() => {
            let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
        }
        _ => Ok(Results::new()),
    }
}

fn measure(args: &Args) -> Result<Results, String> {
    let demo = Demo::new(args.vmferry.clone())?.warm();
    let mut results = before(args.data.as_deref())?;
    let asked = |names: &[String], name: &str| names.iter().any(|n| n == name);
    let cases = || CASES.iter().filter(|c| asked(&args.cases, c.name));
    let trackers = || TRACKERS.into_iter().filter(|t| asked(&args.trackers, t));
    for case in cases() {
        let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
        for run in 0..args.runs {
            // In turn, so that a machine that drifts drifts for all.
            for tracker in trackers() {
                eprintln!("{}, {tracker}, run {} of {}", case.name, run + 1, args.runs);
                let own = ["--tracker", tracker];
                let report = demo.run(&[COMMON, case.args, &own].concat())?;
                figures.entry(tracker).or_default().add(&report)?;
            }
        }
        let medians = figures.iter().map(|(t, f)| ((*t).to_owned(), f.medians()));
        let medians = medians.collect();
        results.insert(case.name.to_owned(), medians);
    }
    Ok(results)
}

/// The promises about what was measured; nothing about what was not.
fn judge(results: &Results) -> Vec<Judged> {
    let of = |case: &str, tracker: &str, figure: &str| {
        let trackers = results.get(case)?;
        trackers.get(tracker)?[figure].as_f64()
    };
    let ratio = |case: &str, figure: &str| {
        Some(of(case, "wp-group", figure)? / of(case, "kvm-log", figure)?)
    };
    let mut judgements = Vec::new();
    let mut judge = |what: &str, value: Option<f64>, at_most: Option<f64>| {
        if let (Some(value), Some(at_most)) = (value, at_most) {
            judgements.push(judged(what, value, at_most));
        }
    };
    judge(
        "dense: work lost in pre-copy, wp-group / kvm-log",
        ratio("dense", "brownout_lost_ms"),
        Some(OF_KVM_LOG),
    );
    judge(
        "dense: brownout with wp-group, per cent",
        of("dense", "wp-group", "brownout_pct"),
        Some(BROWNOUT_PCT),
    );
    judge(
        "readmostly: brownout with wp-group, per cent",
        of("readmostly", "wp-group", "brownout_pct"),
        Some(READMOSTLY_PCT),
    );
    judge(
        "dense at a fixed rate: bytes, wp-group / kvm-log",
        ratio("dense-slow", "bytes_wire"),
        Some(BYTES),
    );
    judge(
        "rewrite-same: bytes after pass 1, wp-group / kvm-log",
        ratio("rewrite-same", "bytes_wire_after_pass_1"),
        Some(BYTES_SAME),
    );
    for case in ["sparse", "dense-slow", "rewrite-same"] {
        judge(
            &format!("{case}: reading in the blackout with wp-group, ms"),
            of(case, "wp-group", "scan_in_blackout_ms"),
            Some(SCAN_MS),
        );
        judge(
            &format!("{case}: blackout with wp-group, ms, beside kvm-log's and {BLACKOUT_MORE_MS}"),
            of(case, "wp-group", "blackout_ms"),
            of(case, "kvm-log", "blackout_ms").map(|ms| BLACKOUT * ms + BLACKOUT_MORE_MS),
        );
    }
    for case in CASES.iter().map(|c| c.name) {
        let single = TRACKERS.iter().filter(|t| **t != "auto");
        let lost = single.filter_map(|t| of(case, t, "brownout_pct"));
        let best = lost.reduce(f64::min);
        judge(
            &format!("{case}: brownout with auto, per cent, beside the best tracker's"),
            of(case, "auto", "brownout_pct"),
            best.map(|best| best + AUTO_NOISE_PCT.max(best * AUTO_MORE)),
        );
    }
    judgements
}

fn plot(results: &Results) -> String {
    let mut all = Vec::new();
    for (case, trackers) in results {
        for (tracker, figures) in trackers {
            all.push(Bar {
                group: (*case).to_owned(),
                name: (*tracker).to_owned(),
                value: figures["brownout_pct"].as_f64().unwrap_or(0.0),
            });
        }
    }
    plot::bars("guest speed lost while it is copied, per cent", &all)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = measure(&args).and_then(|results| {
        let judged = judge(&results);
        let write = |path: &Option<PathBuf>, text: String| match path {
            Some(path) => std::fs::write(path, text).map_err(|e| e.to_string()),
            None => Ok(()),
        };
        write(&args.data, format!("{:#}\n", json!(results)))?;
        write(&args.svg, plot(&results))?;
        Ok((results, judged))
    });
    let (results, judged) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("trackers: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{}", json!({"medians": results, "bars": judged}));
    } else {
        println!("{:#}", json!(results));
        bars::print(&judged);
    }
    ExitCode::from(u8::from(!bars::all_within(&judged)))
}
