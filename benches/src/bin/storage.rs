//! Whole moves by `vmferry demo` of a guest whose storage needs 0 to 30 s for a write (nbdkit with
//! its delay filter): whether the blackout depends on it, and how soon the guest's other requests
//! are answered after it. Prints medians and whether they are within the bars; exits with 1 where
//! one is not. Needs nbdkit (Debian: apt-get install nbdkit).
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin storage [-- --runs 7]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;
use serde_json::json;
use vmferry_benches::bars::{self, judged};
use vmferry_benches::demo::{Demo, median, number};

/// How far the medians of the blackout may be apart, in milliseconds.
const APART_MS: f64 = 5.0;
/// Until every vCPU has seen a request answered at the destination, in milliseconds.
const FIRST_MS: f64 = 10.0;

#[derive(Debug, Parser)]
struct Args {
    /// Moves for each delay, in turn
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Delays of writes, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "0,1000,5000,30000")]
    delays: Vec<u32>,
    /// Requests in flight
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// kvm, process or auto
    #[arg(long, default_value = "auto")]
    machine: String,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was measured with one delay.
#[derive(Debug, Default, Serialize)]
struct Row {
    delay_ms: u32,
    blackout_ms: Vec<f64>,
    io_cancel_ms: Vec<f64>,
    first_ms: Vec<f64>,
    unsettled: Vec<f64>,
    settled_ms: Vec<f64>,
}

fn measure(args: &Args, demo: &Demo, row: &mut Row) -> Result<(), String> {
    let (delay, depth) = (row.delay_ms.to_string(), args.depth.to_string());
    let report = demo.run(&[
        "--workload=idle",
        "--mem=256M",
        "--fill-mib=32",
        "--ws-mib=1",
        "--disk",
        "nbdkit",
        "--disk-rate=4000",
        "--disk-delay-ms",
        &delay,
        "--disk-depth",
        &depth,
        "--machine",
        &args.machine,
    ])?;
    let verdicts = [
        report.pointer("/guest/verify"),
        report.pointer("/io/verify_unsettled"),
    ];
    for verdict in verdicts.into_iter().flatten().filter_map(|v| v.as_str()) {
        if verdict != "OK" {
            return Err(format!("a write of {delay} ms: VERIFY {verdict}"));
        }
    }
    row.blackout_ms.push(number(&report, "/blackout_guest_ms")?);
    let cancel = number(&report, "/blackout_breakdown_ms/io_cancel")?;
    row.io_cancel_ms.push(cancel);
    row.first_ms
        .push(number(&report, "/io/first_after_resume_ms")?);
    row.unsettled.push(number(&report, "/io/unsettled")?);
    row.settled_ms
        .push(number(&report, "/io/settled_ms").unwrap_or(0.0));
    Ok(())
}

fn run(args: &Args) -> Result<bool, String> {
    let demo = Demo::new(args.vmferry.clone())?;
    let row = |delay_ms: &u32| Row {
        delay_ms: *delay_ms,
        ..Row::default()
    };
    let mut rows: Vec<Row> = args.delays.iter().map(row).collect();
    for _ in 0..args.runs {
        for row in &mut rows {
            measure(args, &demo, row)?;
        }
    }
    let blackouts = rows.iter().map(|r| median(&r.blackout_ms));
    let (least, most) = blackouts.fold((f64::MAX, 0.0f64), |(l, m), b| (l.min(b), m.max(b)));
    let firsts = rows.iter().map(|r| median(&r.first_ms)).fold(0.0, f64::max);
    let bars = [
        judged(
            "medians of the blackout apart, in ms",
            most - least,
            APART_MS,
        ),
        judged(
            "first request answered after resumption, in ms",
            firsts,
            FIRST_MS,
        ),
    ];
    if args.json {
        let out = json!({ "runs": args.runs, "rows": rows, "bars": bars });
        println!("{out:#}");
        return Ok(bars::all_within(&bars));
    }
    println!(
        "medians of {} runs, {} requests in flight",
        args.runs, args.depth
    );
    println!("write ms  blackout ms  io_cancel ms  first ms  unsettled  settled ms");
    for r in &rows {
        println!(
            "{:>8} {:>12.2} {:>13.2} {:>9.2} {:>10.0} {:>11.0}",
            r.delay_ms,
            median(&r.blackout_ms),
            median(&r.io_cancel_ms),
            median(&r.first_ms),
            median(&r.unsettled),
            median(&r.settled_ms)
        );
    }
    bars::print(&bars);
    Ok(bars::all_within(&bars))
}

fn main() -> ExitCode {
    bars::exit("storage", run(&Args::parse()))
}
