//! The demo's part of the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vmferry_machine::DiskSource;

use super::parse::{codec, duration, group, size, throttle, tracker};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MachineArg {
    /// KVM where /dev/kvm can be used, else the process machine
    Auto,
    /// A KVM virtual machine
    Kvm,
    /// The same workload as native threads: not a VM
    Process,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportArg {
    /// One QUIC connection
    Quic,
    /// TCP with TLS, a connection for each stream
    Tcp,
}

impl TransportArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// The demo: a thin front on the same engine that hosts use.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What the built-in guest does: idle, dense, sparse, readmostly, rewrite-same
    #[arg(long, default_value = "dense", value_parser = workload)]
    pub(crate) workload: String,
    /// Working set of the built-in guest, in MiB
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) ws_mib: u32,
    /// Page touches per second and vCPU; 0 is as fast as it goes
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    pub(crate) rate: u64,
    /// Shares of the guest's filled RAM that are zero, text-like, random, and records of pointers
    /// and small numbers; or mixed, zero-heavy, text, structs, random
    #[arg(long, default_value = "30:40:30", value_name = "ZERO:TEXT:RANDOM[:STRUCTS]", value_parser = fill)]
    pub(crate) fill: String,
    /// MiB of RAM that the built-in guest fills (default: the working set and a quarter of the rest)
    #[arg(long, value_name = "N")]
    pub(crate) fill_mib: Option<u32>,
    /// For sparse: distance between pages written, as in 2M (one page per 2 MiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) stride: Option<u64>,
    /// Seed of the guest's random choices
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// RAM of the guest, as in 512M or 4G (a multiple of 2 MiB)
    #[arg(long, default_value = "1G", value_name = "SIZE", value_parser = size)]
    pub(crate) mem: u64,
    /// Virtual processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) vcpus: u8,
    /// How pages travel
    #[arg(long, value_enum, default_value = "quic")]
    pub(crate) transport: TransportArg,
    /// Page streams
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) streams: u16,
    /// auto (what has each chunk there soonest; measured), raw, lz4, zstd[:LEVEL], brotli[:LEVEL]
    #[arg(long, default_value = "auto", value_parser = codec)]
    pub(crate) codec: String,
    /// Most MiB of pages that are kept as they were sent, to send differences (with codec auto)
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub(crate) delta_cache_mib: u32,
    /// Compressor threads, of which as many work as processors are idle (0: as many as processors,
    /// four at most)
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub(crate) compressors: u16,
    /// wp-group, kvm-log, kvm-ring, wp-async, or auto (what costs a guest least here; measured)
    #[arg(long, default_value = "auto", value_parser = tracker)]
    pub(crate) tracker: String,
    /// Pages that wp-group handles as one: auto, or a size from 4k to 32m
    #[arg(long, default_value = "auto", value_name = "SIZE", value_parser = group)]
    pub(crate) group: String,
    /// Slow writers down where the migration would not end otherwise: off, on, or the most of
    /// their time that they may be made to wait, in per cent
    #[arg(long, default_value = "off", value_name = "off|on|PCT", value_parser = throttle)]
    pub(crate) throttle: u8,
    /// Fewest passes before the pause, to measure what passes cost
    #[arg(long, default_value_t = 1, value_name = "N", hide_short_help = true, value_parser = clap::value_parser!(u32).range(1..=40))]
    pub(crate) min_passes: u32,
    /// How that limit changes while the guest moves, as in 50@1s,1000@3s, to measure what comes of it
    #[arg(long, value_name = "MBIT@TIME,…", hide_short_help = true, value_delimiter = ',', value_parser = change)]
    pub(crate) link_changes: Vec<(u64, Duration)>,
    /// Limit of the link in Mbit/s; 0 is no limit
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) link_mbit: u64,
    /// Longest blackout to accept, as in 300ms
    #[arg(long, default_value = "300ms", value_name = "TIME", value_parser = duration)]
    pub(crate) max_blackout: Duration,
    /// Moves from process to process, one after the other (3: A→B→C→A)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) hops: u32,
    /// Kind of machine
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) machine: MachineArg,
    /// Run this PVH ELF in place of the built-in guest
    #[arg(long, value_name = "ELF")]
    pub(crate) kernel: Option<PathBuf>,
    /// Command line for --kernel
    #[arg(long, value_name = "S", requires = "kernel")]
    pub(crate) cmdline: Option<String>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "F", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// File for the serial console (appended across the hops)
    #[arg(long, value_name = "FILE")]
    pub(crate) serial: Option<PathBuf>,
    /// File for the debug port 0xe9 (appended across the hops)
    #[arg(long, value_name = "FILE")]
    pub(crate) debugcon: Option<PathBuf>,
    /// The guest's disk: auto (a temporary image), nbdkit (a temporary server with an image in its
    /// memory), none, file:PATH, or nbd:URI. What it holds is overwritten by the built-in guest,
    /// which keeps it busy (default: auto, where this host can; with --kernel: none)
    #[arg(long, value_name = "DISK", value_parser = disk)]
    pub(crate) disk: Option<DiskArg>,
    /// Disk requests that the built-in guest keeps in flight, for each vCPU
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub(crate) disk_depth: u16,
    /// MiB of the disk that it uses
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) disk_mib: u32,
    /// Disk requests per second and vCPU; 0 is as fast as it goes
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub(crate) disk_rate: u64,
    /// Share of disk requests that go where a write is in flight, in per cent
    #[arg(long, default_value_t = 0, value_name = "PCT", hide_short_help = true, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) disk_overlap: u8,
    /// Share of writes among the disk requests, in per cent
    #[arg(long, default_value_t = 50, value_name = "PCT", hide_short_help = true, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) disk_write: u8,
    /// Slow storage: each request takes so many milliseconds longer, and cannot be cancelled
    /// meanwhile (nbdkit: writes, by its own filter; else all requests, in the VM process)
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=600_000))]
    pub(crate) disk_delay_ms: u32,
    /// How long the guest runs before it is moved (default: 1s, with --kernel 3s)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) warm_up: Option<Duration>,
    /// How long the guest runs on after the last move (default: 1s, with --kernel 10s)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) run_for: Option<Duration>,
    /// Print the report as JSON on stdout (progress and logs go to stderr)
    #[arg(long)]
    pub(crate) json: bool,
}

/// A disk of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskArg {
    /// No disk.
    None,
    /// A temporary image.
    Auto,
    /// A temporary server.
    Nbdkit,
    /// The user's own.
    At(DiskSource),
}

fn disk(text: &str) -> Result<DiskArg, String> {
    Ok(match text {
        "none" => DiskArg::None,
        "auto" => DiskArg::Auto,
        "nbdkit" => DiskArg::Nbdkit,
        other => DiskArg::At(
            other
                .parse()
                .map_err(|e| format!("{e}; or auto, nbdkit, none"))?,
        ),
    })
}

fn workload(text: &str) -> Result<String, String> {
    const KNOWN: [&str; 5] = ["idle", "dense", "sparse", "readmostly", "rewrite-same"];
    if KNOWN.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("choose one of: {}", KNOWN.join(", ")))
    }
}

/// Shares by name.
const FILLS: [(&str, &str); 5] = [
    ("mixed", "30:30:15:25"),
    ("zero-heavy", "80:10:5:5"),
    ("text", "0:100:0"),
    ("structs", "0:0:0:100"),
    ("random", "0:0:100"),
];

/// The shares, as the guest reads them.
fn fill(text: &str) -> Result<String, String> {
    if let Some((_, shares)) = FILLS.iter().find(|(name, _)| *name == text) {
        return Ok((*shares).to_owned());
    }
    let shares: Option<Vec<u8>> = text.split(':').map(|s| s.parse().ok()).collect();
    shares
        .filter(|shares| matches!(shares.len(), 3 | 4))
        .filter(|shares| shares.iter().map(|&s| u32::from(s)).sum::<u32>() == 100)
        .map(|shares| shares.iter().map(u8::to_string).collect::<Vec<_>>())
        .map(|shares| shares.join(":"))
        .ok_or_else(|| {
            format!(
                "give three or four shares that sum to 100, as in 30:40:30 or 30:30:15:25 \
                 (zero, text, random, structs), or one of: {}",
                FILLS.map(|(name, _)| name).join(", ")
            )
        })
}

/// A limit in Mbit/s, and when it begins.
fn change(text: &str) -> Result<(u64, Duration), String> {
    let (mbit, at) = text.split_once('@').ok_or("give MBIT@TIME, as in 50@1s")?;
    let mbit = mbit.parse().map_err(|e| format!("{mbit}: {e}"))?;
    Ok((mbit, duration(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn shares_must_sum_to_a_hundred() {
        assert_eq!(fill("30:40:30"), Ok("30:40:30".to_owned()));
        assert_eq!(fill("30:30:15:25"), Ok("30:30:15:25".to_owned()));
        // The guest knows digits only.
        assert_eq!(fill("+30:040:30"), Ok("30:40:30".to_owned()));
        for bad in [
            "30:40:31",
            "100",
            "50:50",
            "a:b:c",
            "25:25:25:26",
            "20:20:20:20:20",
            "30:40:30:",
            "",
            "4294967295:1:100",
            "256:0:100",
        ] {
            let error = fill(bad).unwrap_err();
            assert!(
                error.contains("sum to 100") && error.contains("zero-heavy"),
                "{bad}"
            );
        }
    }

    #[test]
    fn every_named_fill_is_one_that_can_be_given_in_shares() {
        for (name, shares) in FILLS {
            assert_eq!(fill(name), Ok(shares.to_owned()));
            assert_eq!(fill(shares), Ok(shares.to_owned()), "{name}");
        }
    }

    #[test]
    fn unknown_values_say_what_there_is() {
        let error = |args: &[&str]| {
            Cli::try_parse_from([&["vmferry", "demo"], args].concat())
                .unwrap_err()
                .to_string()
        };
        assert!(error(&["--workload", "w"]).contains("rewrite-same"));
        assert!(error(&["--codec", "rar"]).contains("zstd"));
        assert!(error(&["--tracker", "t"]).contains("kvm-log"));
        assert!(error(&["--group", "3k"]).contains("2m"));
        assert!(error(&["--throttle", "100"]).contains("99"));
        assert!(error(&["--vcpus", "9"]).contains("1..=8"));
        assert!(error(&["--disk", "x.img"]).contains("file:PATH"));
        assert!(error(&["--disk-depth", "65"]).contains("0..=64"));
    }
}
