//! What compression does to whole moves: `vmferry demo` over links of several speeds, with guests
//! of several contents, on processors that idle and on processors that the guest uses up; codec
//! beside codec in turn. Prints medians and whether `auto` keeps its promises; exits with 1 where
//! it does not.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin compression`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;
use serde_json::json;
use vmferry_benches::bars::{self, Judged, judged};
use vmferry_benches::compression::{CONTENTS, Cell, DROP, Figures, LINKS, LOADS, Load, Medians};
use vmferry_benches::demo::Demo;

const CODECS: [&str; 7] = [
    "auto", "raw", "lz4", "zstd:1", "zstd:3", "zstd:9", "brotli:1",
];
/// Time that `auto` may take, as a share of what the best codec for all takes, and of raw.
const OF_BEST: f64 = 1.05;
const OF_RAW: f64 = 1.02;
/// What `auto` may take of the vCPUs' time where the guest uses all processors, in per cent: its
/// codecs' processor time, and what vCPUs wait for a processor beyond what they do with raw.
const TAKEN_PCT: f64 = 3.0;
/// Bytes that `auto` may send of mixed content over 100 Mbit/s, as a share of raw.
const BYTES: f64 = 0.45;

#[derive(Debug, Parser)]
struct Args {
    /// Moves for each codec in each cell of the matrix
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Limits of the link, in Mbit/s; 0 is no limit
    #[arg(long, value_delimiter = ',', value_parser = LINKS.map(|l| l.mbit), default_values = LINKS.map(|l| l.mbit))]
    links: Vec<String>,
    /// Also a link that falls from 1000 to 50 Mbit/s after 0.3 s, and comes back 2.7 s later
    #[arg(long)]
    drop: bool,
    /// Links are limited by the kernel (tbf, in a network namespace of the move's own; needs root)
    /// instead of by vmferry, which is told nothing of the limit
    #[arg(long)]
    shaped: bool,
    /// What the guest's memory holds
    #[arg(long, value_delimiter = ',', value_parser = CONTENTS.map(|c| c.fill), default_values = CONTENTS.map(|c| c.fill))]
    contents: Vec<String>,
    /// What the guest does with the processors
    #[arg(long, value_delimiter = ',', value_parser = LOADS.map(Load::name), default_values = LOADS.map(Load::name))]
    load: Vec<String>,
    /// Codecs that are compared
    #[arg(long, value_delimiter = ',', default_values = CODECS)]
    codecs: Vec<String>,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// Write the data here, after each cell
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The cells that are asked for.
fn cells(args: &Args) -> Vec<Cell> {
    let asked = |names: &[String], name: &str| names.iter().any(|n| n == name);
    let links = LINKS.iter().filter(|l| asked(&args.links, l.mbit));
    let links = links.chain(args.drop.then_some(&DROP));
    let contents = || CONTENTS.iter().filter(|c| asked(&args.contents, c.fill));
    let loads = || LOADS.into_iter().filter(|l| asked(&args.load, l.name()));
    let mut cells = Vec::new();
    for link in links {
        for content in contents() {
            cells.extend(loads().map(|load| Cell {
                link,
                content,
                load,
            }));
        }
    }
    cells
}

/// What came of a cell.
#[derive(Debug, Serialize)]
struct Outcome {
    link_mbit: &'static str,
    content: &'static str,
    load: &'static str,
    codecs: BTreeMap<String, Medians>,
    bars: Vec<Judged>,
}

fn measure(args: &Args, demo: &Demo, cell: &Cell) -> Result<Outcome, String> {
    let common = cell.args(args.shaped);
    let common: Vec<&str> = common.iter().map(String::as_str).collect();
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for run in 0..args.runs {
        // In turn, so that a machine that drifts drifts for all.
        for codec in &args.codecs {
            eprintln!("{cell}, {codec}, run {} of {}", run + 1, args.runs);
            let own = ["--codec", codec];
            let limit = cell.link.steady_mbit().filter(|_| args.shaped);
            let report = demo.run_behind(limit, &[&common[..], &own].concat())?;
            figures.entry(codec).or_default().add(&report)?;
        }
    }
    let codecs = figures.iter().map(|(c, f)| ((*c).to_owned(), f.medians()));
    let codecs = codecs.collect();
    Ok(Outcome {
        link_mbit: cell.link.mbit,
        content: cell.content.fill,
        load: cell.load.name(),
        bars: judge(cell, &codecs),
        codecs,
    })
}

/// The promises that hold in a cell, as far as it was measured.
fn judge(cell: &Cell, codecs: &BTreeMap<String, Medians>) -> Vec<Judged> {
    let Some(auto) = codecs.get("auto") else {
        return Vec::new();
    };
    let mut bars = Vec::new();
    let fixed = codecs.iter().filter(|(codec, _)| *codec != "auto");
    if let Some((codec, best)) = fixed.min_by(|a, b| a.1.total_ms.total_cmp(&b.1.total_ms)) {
        bars.push(judged(
            &format!("{cell}: time, auto / best ({codec})"),
            auto.total_ms / best.total_ms,
            OF_BEST,
        ));
    }
    let raw = codecs.get("raw");
    if let Some(raw) = raw {
        bars.push(judged(
            &format!("{cell}: time, auto / raw"),
            auto.total_ms / raw.total_ms,
            OF_RAW,
        ));
        if cell.link.mbit == "100" && cell.content.fill == "mixed" {
            bars.push(judged(
                &format!("{cell}: bytes, auto / raw"),
                auto.bytes_wire / raw.bytes_wire,
                BYTES,
            ));
        }
    }
    if cell.load == Load::Busy {
        bars.push(judged(
            &format!("{cell}: processor time of auto's codecs, per cent of the vCPUs'"),
            auto.codecs_pct,
            TAKEN_PCT,
        ));
    }
    if let (Load::Busy, Some(raw)) = (cell.load, raw) {
        bars.push(judged(
            &format!("{cell}: vCPUs waited, per cent more with auto than with raw"),
            auto.run_delay_pct - raw.run_delay_pct,
            TAKEN_PCT,
        ));
    }
    bars
}

fn run(args: &Args) -> Result<Vec<Outcome>, String> {
    let demo = Demo::new(args.vmferry.clone())?.warm();
    let mut outcomes = Vec::new();
    for cell in cells(args) {
        outcomes.push(measure(args, &demo, &cell)?);
        // A matrix takes hours: what was measured is kept, whatever comes later.
        if let Some(path) = &args.data {
            let text = format!("{:#}\n", json!(outcomes));
            std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(outcomes)
}

fn print(outcomes: &[Outcome]) {
    println!(
        "link Mbit/s  content     load  codec       total ms   MiB sent  brownout %  waited %  codecs %  by codec"
    );
    for outcome in outcomes {
        for (codec, medians) in &outcome.codecs {
            println!(
                "{:<11}  {:<10}  {:<4}  {codec:<9} {medians}",
                outcome.link_mbit, outcome.content, outcome.load
            );
        }
    }
    println!();
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcomes = match run(&args) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            eprintln!("compression: {error}");
            return ExitCode::FAILURE;
        }
    };
    let judged: Vec<Judged> = outcomes.iter().flat_map(|o| o.bars.clone()).collect();
    if args.json {
        println!("{:#}", json!(outcomes));
    } else {
        print(&outcomes);
        bars::print(&judged);
    }
    ExitCode::from(u8::from(!bars::all_within(&judged)))
}
