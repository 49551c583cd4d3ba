//! Throughput of the transports over loopback, beside what they are built of.
//!
//! Both run in this process, in turn, several times each; medians are compared. `cargo run
//! --release -p vmferry-benches --bin transport`.

use clap::Parser;
use serde::Serialize;
use vmferry_benches::demo::median;
use vmferry_benches::transport::{Cost, Error, Load, keys, ours, plain_quic, plain_tls};
use vmferry_transports::TransportKind;
use vmferry_transports::keys::HostKeys;

/// Throughput of the transports over loopback, beside tokio-rustls and quinn used directly.
#[derive(Parser)]
struct Args {
    /// Streams at the same time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    streams: Vec<u16>,
    /// Which transports.
    #[arg(long, value_delimiter = ',', default_values_t = TransportKind::ALL)]
    transport: Vec<TransportKind>,
    /// Copies by each of the two, in turn.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Data per copy, in MiB.
    #[arg(long, default_value_t = 512)]
    mib: usize,
    /// Largest UDP payload that quinn used directly looks for, in bytes (1452 is its own limit).
    #[arg(long, default_value_t = 1452)]
    quinn_mtu: u16,
    /// Only vmferry's side, to profile it.
    #[arg(long)]
    alone: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// One side of a comparison, medians.
#[derive(Serialize)]
struct Side {
    /// 10⁶ bytes per second.
    mb_per_s: f64,
    /// Seconds of processor time per GiB, both ends together.
    cpu_s_per_gib: f64,
}

#[derive(Serialize)]
struct Row {
    transport: &'static str,
    beside: String,
    streams: u16,
    pairs: usize,
    ours: Side,
    plain: Option<Side>,
    /// Median of the pairs' ratios of throughput, ours to plain.
    ratio: Option<f64>,
}

fn side(costs: &[Cost], bytes: usize) -> Side {
    let bytes = bytes as f64;
    let of = |figure: &dyn Fn(&Cost) -> f64| median(&costs.iter().map(figure).collect::<Vec<_>>());
    Side {
        mb_per_s: of(&|cost| bytes / 1e6 / cost.time.as_secs_f64()),
        cpu_s_per_gib: of(&|cost| cost.cpu.as_secs_f64() * f64::from(1 << 30) / bytes),
    }
}

async fn compare(
    kind: TransportKind,
    streams: u16,
    args: &Args,
    keys: &HostKeys,
) -> Result<Row, Error> {
    let load = Load::new(streams, args.mib << 20);
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    // The first of each only warms up.
    for i in 0..=args.pairs {
        let cost = ours::copy(kind, keys, &load).await?;
        if i > 0 {
            ours.push(cost);
        }
        if args.alone {
            continue;
        }
        let cost = match kind {
            TransportKind::Tcp => plain_tls::copy(keys, &load).await?,
            TransportKind::Quic => plain_quic::copy(keys, &load, args.quinn_mtu).await?,
        };
        if i > 0 {
            plain.push(cost);
        }
    }
    let ratios: Vec<f64> = ours
        .iter()
        .zip(&plain)
        .map(|(ours, plain)| plain.time.as_secs_f64() / ours.time.as_secs_f64())
        .collect();
    Ok(Row {
        transport: kind.name(),
        beside: match kind {
            TransportKind::Tcp => "tokio-rustls".to_owned(),
            TransportKind::Quic => format!("quinn, payload up to {}", args.quinn_mtu),
        },
        streams,
        pairs: args.pairs,
        ours: side(&ours, load.bytes()),
        plain: (!args.alone).then(|| side(&plain, load.bytes())),
        ratio: (!args.alone).then(|| median(&ratios)),
    })
}

fn print(row: &Row) {
    print!(
        "{:<5} {} streams  {:>6.0} MB/s {:>5.2} cpu-s/GiB",
        row.transport, row.streams, row.ours.mb_per_s, row.ours.cpu_s_per_gib
    );
    if let (Some(plain), Some(ratio)) = (&row.plain, row.ratio) {
        print!(
            "   {}: {:>6.0} MB/s {:>5.2} cpu-s/GiB   ratio {ratio:.2}",
            row.beside, plain.mb_per_s, plain.cpu_s_per_gib
        );
    }
    println!();
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args = Args::parse();
    let keys = keys()?;
    let mut rows = Vec::new();
    for &kind in &args.transport {
        for &streams in &args.streams {
            let row = compare(kind, streams, &args, &keys).await?;
            if !args.json {
                print(&row);
            }
            rows.push(row);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}
