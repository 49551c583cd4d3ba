//! Whole moves by `vmferry demo`, many times over: the pause of an idle guest, and how soon a busy
//! one is at its old speed. Prints medians and whether they are within the bars; exits with 1
//! where one is not.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin moves [-- --runs 20]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use vmferry_benches::demo::{Demo, median, number};

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

/// One move; its report.
fn demo(args: &Args, more: &[&str]) -> Result<Value, String> {
    let own = ["--transport", &args.transport, "--machine", &args.machine];
    Demo::new(args.vmferry.clone())?.run(&[&own, more].concat())
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
    let guest = median(&by_guest);
    Ok(json!({
        "what": "idle guest of 1 GiB: blackout",
        "runs": args.runs,
        "median_guest_ms": guest,
        "worst_guest_ms": worst,
        "median_engine_ms": median(&by_engine),
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
    let after = median(&ratios);
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
