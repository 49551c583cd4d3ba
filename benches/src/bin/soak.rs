//! Many moves in a row, of guests and group sizes chosen by a seed: every one must end with
//! `VERIFY OK`. Stops at the first that does not, and says how to run it again.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin soak [-- --moves 200]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use vmferry_benches::demo::Demo;

#[derive(Debug, Parser)]
struct Args {
    /// Moves in all
    #[arg(long, default_value_t = 200)]
    moves: u32,
    /// Moves of one guest before the next is booted
    #[arg(long, default_value_t = 10)]
    hops: u32,
    /// For all that is chosen
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// kvm, process or auto
    #[arg(long, default_value = "auto")]
    machine: String,
}

const WORKLOADS: [&str; 2] = ["dense", "sparse"];
const GROUPS: [&str; 7] = ["auto", "4k", "16k", "64k", "512k", "2m", "32m"];
const RATES: [&str; 3] = ["5000", "50000", "0"];
/// `auto` twice: it is the default, and sends differences to earlier versions of pages.
const CODECS: [&str; 5] = ["auto", "auto", "raw", "lz4", "zstd:3"];
const TRANSPORTS: [&str; 2] = ["quic", "tcp"];

/// The next number (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pick<'a>(state: &mut u64, from: &[&'a str]) -> &'a str {
    from[(next(state) % from.len() as u64) as usize]
}

/// One guest's arguments.
fn guest(state: &mut u64, args: &Args, hops: u32) -> Vec<String> {
    let fixed = [
        "--tracker wp-group --vcpus 4 --mem 512M --ws-mib 32 --fill-mib 96 --max-blackout 20s",
        "--warm-up 100ms --run-for 0s",
    ];
    let mut words: Vec<String> = fixed
        .iter()
        .flat_map(|line| line.split(' '))
        .map(str::to_owned)
        .collect();
    let mut add = |flag: &str, value: &str| words.extend([flag.to_owned(), value.to_owned()]);
    add("--machine", &args.machine);
    add("--hops", &hops.to_string());
    add("--workload", pick(state, &WORKLOADS));
    add("--group", pick(state, &GROUPS));
    add("--rate", pick(state, &RATES));
    add("--codec", pick(state, &CODECS));
    add("--transport", pick(state, &TRANSPORTS));
    add("--seed", &(next(state) % 1_000_000).to_string());
    words
}

fn verified(report: &Value) -> bool {
    report["outcome"] == "completed" && report["guest"]["verify"] == "OK"
}

fn main() -> ExitCode {
    let args = Args::parse();
    let demo = match Demo::new(args.vmferry.clone()) {
        Ok(demo) => demo,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut state = args.seed;
    let mut moved = 0;
    while moved < args.moves {
        let hops = args.hops.clamp(1, args.moves - moved);
        let words = guest(&mut state, &args, hops);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let report = demo.run(&words);
        if !report.as_ref().is_ok_and(verified) {
            let why = match report {
                Ok(report) => format!("{} {}", report["outcome"], report["guest"]["verify"]),
                Err(error) => error,
            };
            eprintln!(
                "after {moved} moves: vmferry demo {}: {why}",
                words.join(" ")
            );
            return ExitCode::FAILURE;
        }
        moved += hops;
        eprintln!("{moved} of {} moves verified", args.moves);
    }
    println!("{moved} moves, every guest verified");
    ExitCode::SUCCESS
}
