//! Records which pages a guest writes, interval by interval, for the simulator.
//!
//! `cargo run --release -p vmferry-benches --bin record -- --cmdline "workload=dense ws-mib=8 rate=20000"`
//!
//! The guest runs on KVM with its dirty log, which is read and cleared in each interval; that slows
//! a guest which writes as fast as it can, so what is recorded is what it did then.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use vmferry_benches::guest::booted;
use vmferry_machine::Boot;
use vmferry_protocol::PageRange;
use vmferry_tests::recording::Recording;
use vmferry_tracker::TrackerKind;

#[derive(Debug, Parser)]
struct Args {
    /// What the built-in workload is told
    #[arg(long, conflicts_with = "kernel")]
    cmdline: Option<String>,
    /// A kernel to boot in its place, by PVH
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// What it is told
    #[arg(long, requires = "kernel", default_value = "console=ttyS0")]
    append: String,
    /// RAM, in MiB
    #[arg(long, default_value_t = 32)]
    mem_mib: u64,
    /// Intervals to record
    #[arg(long, default_value_t = 200)]
    intervals: usize,
    /// Length of an interval, in milliseconds
    #[arg(long, default_value_t = 10)]
    every_ms: u64,
    /// Let it run for so long first, in milliseconds
    #[arg(long, default_value_t = 500)]
    warm_up_ms: u64,
    /// Where to (default: standard output)
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is to be booted.
fn boot(args: &Args) -> Boot {
    match &args.kernel {
        Some(kernel) => Boot::Kernel {
            kernel: kernel.clone(),
            initrd: args.initrd.clone(),
            cmdline: args.append.clone(),
        },
        None => Boot::Workload {
            cmdline: args.cmdline.clone().unwrap_or_default(),
        },
    }
}

fn record(args: &Args) -> Result<Recording, String> {
    let machine = booted(boot(args), args.mem_mib)?;
    sleep(Duration::from_millis(args.warm_up_ms));
    let tracker = machine
        .tracker(TrackerKind::KvmLog)
        .map_err(|e| e.to_string())?;
    tracker.start().map_err(|e| e.to_string())?;
    let harvest = || {
        let mut runs: Vec<PageRange> = Vec::new();
        tracker
            .harvest(&mut |run| match runs.last_mut() {
                Some(last) if last.end() == run.start => last.count += run.count,
                _ => runs.push(run),
            })
            .map_err(|e| e.to_string())?;
        for &run in &runs {
            tracker.protect(run).map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(runs)
    };
    // Everything counts as written at first.
    harvest()?;
    let (began, every) = (Instant::now(), Duration::from_millis(args.every_ms));
    let mut intervals = Vec::new();
    for n in 1..=args.intervals {
        let until = began + every * n as u32;
        sleep(until.saturating_duration_since(Instant::now()));
        intervals.push(harvest()?);
    }
    tracker.stop();
    Ok(Recording {
        pages: (args.mem_mib << 20) / vmferry_protocol::PAGE_SIZE,
        every_ms: args.every_ms,
        intervals,
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let written = record(&args).and_then(|recording| match &args.out {
        Some(path) => {
            fs::write(path, recording.to_string()).map_err(|e| format!("{}: {e}", path.display()))
        }
        None => {
            print!("{recording}");
            Ok(())
        }
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
