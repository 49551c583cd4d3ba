//! What a guest at full speed loses that is not migrated: by itself, beside a processor that is
//! busy, and beside one that copies memory, as both sides of a migration on one host do. What
//! `trackers` prints beyond that is not due to such load.
//!
//! `cargo run --release -p vmferry-benches --bin alone`

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use vmferry_benches::demo::median;
use vmferry_benches::guest::booted;
use vmferry_machine::{Boot, Machine};

#[derive(Debug, Parser)]
struct Args {
    /// Guests of each sort
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// What is copied in a second, in MiB: a link's bytes, times the copies that are made of them
    #[arg(long, default_value_t = 800)]
    mib_per_s: u64,
    /// Seconds that are compared with the two before
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is beside the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    Arithmetic,
    Copying,
}

const SORTS: [(&str, Beside); 3] = [
    ("nothing", Beside::Nothing),
    ("arithmetic", Beside::Arithmetic),
    ("copying", Beside::Copying),
];
/// As the dense guest of `trackers`.
const GUEST: &str = "workload=dense ws-mib=256 fill-mib=256 rate=0";
const MEM_MIB: u64 = 512;
const WARM_UP: Duration = Duration::from_secs(2);
/// Bytes of a copy; from and to much more than caches hold.
const PIECE: usize = 256 << 10;
const BUFFER: usize = 256 << 20;
/// Work between looks at the clock.
const ROUNDS: u64 = 200_000;

/// Keeps a processor at work until told to stop: copying so much in a second, or half of the time.
fn busy(beside: Beside, mib_per_s: u64, stop: &AtomicBool) {
    let size = if beside == Beside::Copying { BUFFER } else { 0 };
    let (from, mut to) = (vec![1u8; size], vec![2u8; size]);
    let (began, mut done, mut at) = (Instant::now(), 0u64, 0);
    let mut sum = 1u64;
    while !stop.load(Ordering::Relaxed) {
        match beside {
            Beside::Copying => {
                to[at..at + PIECE].copy_from_slice(&from[at..at + PIECE]);
                at = (at + PIECE) % BUFFER;
                done += PIECE as u64;
                let due = done as f64 / (mib_per_s << 20) as f64;
                sleep(Duration::from_secs_f64(due).saturating_sub(began.elapsed()));
            }
            _ => {
                let round = Instant::now();
                (0..ROUNDS).for_each(|n| sum = black_box(sum.wrapping_mul(31).wrapping_add(n)));
                sleep(round.elapsed());
            }
        }
    }
    black_box(&to);
}

/// Work a second, over some time.
fn rate(machine: &dyn Machine, time: Duration) -> Result<f64, String> {
    let work = || {
        let recorder = machine.workload().ok_or("it has a workload")?;
        Ok::<u64, String>(recorder.save().work.iter().sum())
    };
    let (before, began) = (work()?, Instant::now());
    sleep(time);
    let done = work()?.saturating_sub(before);
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

/// The share of its speed that a guest loses, in per cent; below 0 where it becomes faster.
fn lost(args: &Args, beside: Beside) -> Result<f64, String> {
    let cmdline = GUEST.to_owned();
    let machine = booted(Boot::Workload { cmdline }, MEM_MIB)?;
    let before = rate(&*machine, WARM_UP)?;
    let stop = AtomicBool::new(beside == Beside::Nothing);
    let then = std::thread::scope(|scope| {
        scope.spawn(|| busy(beside, args.mib_per_s, &stop));
        let then = rate(&*machine, Duration::from_secs(args.seconds));
        stop.store(true, Ordering::Relaxed);
        then
    })?;
    Ok((1.0 - then / before) * 100.0)
}

fn measure(args: &Args) -> Result<Vec<(&'static str, Vec<f64>)>, String> {
    let mut all: Vec<_> = SORTS.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for run in 0..args.runs {
        // In turn, so that a machine that drifts drifts for all.
        for ((_, beside), (name, figures)) in SORTS.iter().zip(&mut all) {
            eprintln!("{name}, run {} of {}", run + 1, args.runs);
            figures.push(lost(args, *beside)?);
        }
    }
    Ok(all)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let all = match measure(&args) {
        Ok(all) => all,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    for (name, mut figures) in all {
        figures.sort_by(f64::total_cmp);
        let middle = median(&figures);
        match args.json {
            true => println!(
                "{}",
                json!({"beside": name, "lost_pct": middle, "all": figures})
            ),
            false => {
                println!("beside {name:<10} {middle:6.1} % of its speed lost, of {figures:.1?}")
            }
        }
    }
    ExitCode::SUCCESS
}
