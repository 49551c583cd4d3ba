//! Two host services of the real binary on this machine: 32 machines (64 MiB, mixed workloads) are
//! moved from one to the other and back, 8 at a time, while the API is asked; then again while one
//! service or the other is killed at random moments. Prints what it costs and whether it is within
//! the bars; exits with 1 where something is not.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin hosts`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;
use serde_json::json;
use vmferry_benches::bars::{self, Judged, judged};
use vmferry_benches::demo::{median, percentile};
use vmferry_service::client::ApiClient;
use vmferry_service::model::{Drain, MigrationOptions, VmSpec};
use vmferry_tests::hosts::{HostService, Hosts, fleet};
use vmferry_tests::sim::Rng;

/// The service's own memory, in MiB.
const MEMORY_MIB: f64 = 150.0;
/// The mean throughput of a drain's migrations over that of the slowest.
const UNFAIR: f64 = 2.0;
/// 99 of 100 answers of the API come in so many milliseconds.
const ANSWER_MS: f64 = 20.0;

#[derive(Debug, Parser)]
struct Args {
    /// Machines
    #[arg(long, default_value_t = 32)]
    vms: usize,
    /// Migrations at once
    #[arg(long, default_value_t = 8)]
    parallel: u32,
    /// Times that a service is killed
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Bandwidth of all migrations of a host together, in Mbit/s: so little that it, and not the
    /// processors, is what they have to share
    #[arg(long, default_value_t = 100)]
    link_mbit: u64,
    /// Random moments come from here
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// kvm or process
    #[arg(long, default_value = "kvm")]
    machine: String,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A drain, as a whole.
#[derive(Debug, Serialize)]
struct Emptied {
    to: String,
    took_s: f64,
    blackout_ms: Vec<f64>,
    /// Wire bytes by time, of each migration, in Mbit/s.
    mbit: Vec<f64>,
}

/// Asks for all machines, for the host and for one machine in turn, until told to stop; how long
/// each answer took, in milliseconds.
async fn ask(client: ApiClient, stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answered = match took.len() % 3 {
            0 => client.vms().await.is_ok(),
            1 => client.host().await.is_ok(),
            _ => client.migrations(None, None).await.is_ok(),
        };
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        took.push(if answered { ms } else { f64::INFINITY });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took
}

async fn empty(
    from: &HostService,
    to: &HostService,
    args: &Args,
) -> Result<(Emptied, Vec<f64>), String> {
    let request = fleet::to(&to.name, args.parallel, MigrationOptions::default());
    let stop = Arc::new(AtomicBool::new(false));
    let asked = tokio::spawn(ask(from.client(), stop.clone()));
    let begun = Instant::now();
    let drain: Drain = fleet::drain(from, to, &request).await?;
    let took_s = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let answers = asked.await.map_err(|e| e.to_string())?;
    if !fleet::all_left(&drain) {
        return Err(format!("not all have left: {:?}", drain.items));
    }
    let mut mbit = Vec::new();
    for item in &drain.items {
        let id = item.migration.as_deref().ok_or("without a migration")?;
        let report = from.client().report(id).await.map_err(|e| e.detail())?;
        mbit.push(report.bytes_wire as f64 * 8.0 / 1e3 / report.total_ms);
    }
    let blackout_ms = drain.items.iter().filter_map(|item| item.blackout_ms);
    let emptied = Emptied {
        to: to.name.clone(),
        took_s,
        blackout_ms: blackout_ms.collect(),
        mbit,
    };
    Ok((emptied, answers))
}

/// Every machine is where it should be, and its memory is what it should be.
async fn check(at: &HostService, other: &HostService, specs: &[VmSpec]) -> Result<(), String> {
    fleet::each_on_one(&at.client(), &other.client(), specs).await?;
    let wrong = fleet::wrong(&at.client()).await;
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join(", ")),
    }
}

async fn measure(args: &Args) -> Result<bool, String> {
    let binary = match &args.vmferry {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()
            .map_err(|e| e.to_string())?
            .with_file_name("vmferry"),
    };
    let more = format!(
        "[limits]\noutgoing = {0}\nincoming = {0}\nlink_mbit = {1}\n",
        args.parallel, args.link_mbit
    );
    let mut hosts = Hosts::new(&binary, &["a", "b"], &more);
    for name in ["a", "b"] {
        hosts.host(name).start().await;
    }
    let specs = fleet::specs(args.vms, &args.machine);
    let (mut drains, mut answers) = (Vec::new(), Vec::new());
    // First as many as move at once: the API is asked while all of them do. Then all: more
    // guests than a small host has processors for.
    let few = specs.len().min(args.parallel as usize);
    let mut there: &[VmSpec] = &[];
    for many in [few, specs.len()] {
        fleet::create(&hosts.host("a").client(), &specs[there.len()..many]).await?;
        there = &specs[..many];
        let mut answered = Vec::new();
        for way in [["a", "b"], ["b", "a"]] {
            let (from, to) = hosts.pair(way[0], way[1]);
            let (emptied, took) = empty(from, to, args).await?;
            answered.extend(took);
            check(to, from, there).await?;
            drains.push(emptied);
        }
        answers.push(answered);
    }
    let memory = ["a", "b"].map(|name| hosts.host(name).memory_mib().1);
    let (mut kills, mut asked, mut way) = (0, 0, ["a", "b"]);
    let mut rng = Rng::new(args.seed);
    while kills < args.kills {
        let (from, to) = hosts.pair(way[0], way[1]);
        let request = fleet::to(way[1], args.parallel, MigrationOptions::default());
        let left = args.kills - kills;
        let done = fleet::drain_under_kills(from, to, &request, left, &mut rng).await?;
        check(to, from, &specs).await?;
        (kills, asked) = (kills + done.kills, asked + done.drains);
        way.reverse();
    }
    let memory_mib = memory.iter().copied().max().unwrap_or(0) as f64;
    let unfair = drains.iter().map(|drain| {
        let mean = drain.mbit.iter().sum::<f64>() / drain.mbit.len() as f64;
        mean / drain.mbit.iter().copied().fold(f64::INFINITY, f64::min)
    });
    let bars: Vec<Judged> = vec![
        judged("memory of a service at most, MiB", memory_mib, MEMORY_MIB),
        judged(
            "mean throughput of migrations / the slowest's",
            unfair.fold(0.0, f64::max),
            UNFAIR,
        ),
        judged(
            "99 % of the API's answers while all machines move at once, ms",
            percentile(99, &answers[0]),
            ANSWER_MS,
        ),
    ];
    if args.json {
        let all = json!({"drains": drains, "answers_ms": answers, "kills": kills, "asked": asked,
            "bars": bars});
        println!("{all:#}");
    } else {
        for drain in &drains {
            println!(
                "{} machines to {} in {:.1} s · blackout {:.1} ms (median), {:.1} at most · {:.0} Mbit/s \
                 each (median)",
                drain.mbit.len(),
                drain.to,
                drain.took_s,
                median(&drain.blackout_ms),
                drain.blackout_ms.iter().copied().fold(0.0, f64::max),
                median(&drain.mbit),
            );
        }
        println!(
            "{kills} kills in drains that were asked for {asked} times: each machine on one host, all \
             verify OK"
        );
        for (answered, of) in answers.iter().zip([few, specs.len()]) {
            println!(
                "{} answers with {of} machines: median {:.1} ms, 99 % within {:.1} ms",
                answered.len(),
                median(answered),
                percentile(99, answered),
            );
        }
        bars::print(&bars);
    }
    Ok(bars::all_within(&bars))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new();
    let kept = runtime
        .map_err(|e| e.to_string())
        .and_then(|runtime| runtime.block_on(measure(&args)));
    bars::exit("hosts", kept)
}
