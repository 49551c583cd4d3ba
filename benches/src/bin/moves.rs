//! Whole moves by `vmferry demo`, many times over: the pause of an idle guest, and how soon a busy
//! one is at its old speed. Prints medians and whether they are within the bars; exits with 1
//! where one is not.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin moves [-- --runs 20]`

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use serde_json::{Value, json};

/// Median blackout of an idle guest of 1 GiB, by its own heartbeat, in milliseconds.
const BLACKOUT_MS: f64 = 10.0;
/// Speed in the first second after the move, as a share of the speed before.
const AFTER: f64 = 0.9;
/// How far the parts of the blackout may be from their sum, in milliseconds.
const ROUNDING_MS: f64 = 0.01;

#[derive(Debug, Parser)]
struct Args {
    /// Moves of the idle guest
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Moves of the busy guest
    #[arg(long, default_value_t = 7)]
    busy_runs: usize,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// quic or tcp
    #[arg(long, default_value = "quic")]
    transport: String,
    /// kvm, process or auto
    #[arg(long, default_value = "auto")]
    machine: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 {
        f64::NAN
    } else if n % 2 == 1 {
        values[n / 2]
    } else {
        f64::midpoint(values[n / 2 - 1], values[n / 2])
    }
}

/// One move; its report.
fn demo(args: &Args, more: &[&str]) -> Result<Value, String> {
    let beside = || {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        Ok::<_, String>(own.with_file_name("vmferry"))
    };
    let binary = args.vmferry.clone().map_or_else(beside, Ok)?;
    let output = Command::new(&binary)
        .args(["demo", "--json", "--transport", &args.transport])
        .args(["--machine", &args.machine])
        .args(more)
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| format!("{}: {e} (cargo build --release first)", binary.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}

fn number(report: &Value, path: &str) -> Result<f64, String> {
    report
        .pointer(path)
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("the report has no number at {path}"))
}

fn idle(args: &Args) -> Result<Value, String> {
    let (mut by_guest, mut by_engine, mut apart) = (Vec::new(), Vec::new(), 0.0f64);
    for _ in 0..args.runs {
        let report = demo(args, &["--workload", "idle", "--mem", "1G"])?;
        by_guest.push(number(&report, "/blackout_guest_ms")?);
        let total = number(&report, "/blackout_ms")?;
        let parts = report
            .pointer("/blackout_breakdown_ms")
            .and_then(Value::as_object)
            .ok_or("the report has no breakdown")?;
        let sum: f64 = parts.values().filter_map(Value::as_f64).sum();
        apart = apart.max((sum - total).abs());
        by_engine.push(total);
    }
    let worst = by_guest.iter().copied().fold(0.0, f64::max);
    let guest = median(by_guest);
    Ok(json!({
        "what": "idle guest of 1 GiB: blackout",
        "runs": args.runs,
        "median_guest_ms": guest,
        "worst_guest_ms": worst,
        "median_engine_ms": median(by_engine),
        "parts_apart_from_sum_ms": apart,
        "bar_ms": BLACKOUT_MS,
        "within": guest <= BLACKOUT_MS && apart <= ROUNDING_MS,
    }))
}

fn busy(args: &Args) -> Result<Value, String> {
    let mut ratios = Vec::new();
    let dense = ["--workload", "dense", "--ws-mib", "256", "--rate", "0"];
    for _ in 0..args.busy_runs {
        let report = demo(args, &[&dense[..], &["--max-blackout", "5s"]].concat())?;
        let before = number(&report, "/guest/work_rate_before")?;
        ratios.push(number(&report, "/guest/work_rate_after")? / before);
    }
    let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let after = median(ratios);
    Ok(json!({
        "what": "dense guest, 256 MiB hot: speed in the first second after the move",
        "runs": args.busy_runs,
        "median_of_before": after,
        "lowest_of_before": lowest,
        "bar": AFTER,
        "within": after >= AFTER,
    }))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let results: Result<Vec<Value>, String> = [idle, busy].iter().map(|f| f(&args)).collect();
    let results = match results {
        Ok(results) => results,
        Err(error) => {
            eprintln!("moves: {error}");
            return ExitCode::FAILURE;
        }
    };
    let within = results.iter().all(|r| r["within"] == true);
    if args.json {
        println!("{}", json!(results));
    } else {
        for result in results.iter().filter_map(Value::as_object) {
            for (name, value) in result {
                println!("{name:>26}  {value}");
            }
            println!();
        }
    }
    ExitCode::from(u8::from(!within))
}
