//! Random reads of 4 KiB by the guest's driver, through virtio-blk and the `file` backend, beside
//! fio on the same file, in turn. Prints medians and whether the bar is kept; exits with 1 where
//! it is not. Needs fio (Debian: apt-get install fio).
//!
//! `cargo run --release -p vmferry-benches --bin disk [-- --runs 7 --depth 32 --image FILE]`

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use vmferry_benches::bars::{self, judged};
use vmferry_benches::demo::{median, number};
use vmferry_machine::{
    Boot, Console, DiskSource, Machine, MachineConfig, MachineEvent, MachineKind, Role, create,
};

/// Least share of fio's reads that the guest must get.
const SHARE: f64 = 0.6;

#[derive(Debug, Parser)]
struct Args {
    /// Pairs of measurements
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Requests in flight
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// MiB of the image
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Where the image is made (default: a temporary directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// kvm or process
    #[arg(long, default_value = "kvm")]
    machine: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads a second by the guest.
fn guest(args: &Args, image: &Path) -> Result<f64, String> {
    let (sender, ready) = mpsc::channel();
    let sink = Arc::new(move |event| {
        if event == MachineEvent::WorkloadReady {
            let _ = sender.send(());
        }
    });
    let config = MachineConfig {
        kind: match args.machine.as_str() {
            "process" => MachineKind::Process,
            _ => MachineKind::Kvm,
        },
        ram_bytes: 64 << 20,
        vcpus: 1,
        boot: Boot::Workload {
            cmdline: format!(
                "workload=idle ws-mib=1 fill-mib=1 disk-depth={} disk-mib={} disk-write=0",
                args.depth, args.mib
            ),
        },
        serial: Console::None,
        debugcon: Console::Stdout,
        disks: vec![DiskSource::File(image.to_owned()).spec()],
        dirty_rings: false,
    };
    let machine = create(&config, sink, Role::Owner).map_err(|e| e.to_string())?;
    let begun = machine.boot().and_then(|()| machine.resume());
    begun.map_err(|e| e.to_string())?;
    ready
        .recv_timeout(Duration::from_secs(60))
        .map_err(|_| "the guest does not come up".to_owned())?;
    let rate = reads(&*machine, Duration::from_secs(args.seconds));
    machine.stop();
    rate
}

fn reads(machine: &dyn Machine, time: Duration) -> Result<f64, String> {
    // What comes with the start is left out.
    std::thread::sleep(time / 4);
    let (before, began) = (machine.disks().stats(), Instant::now());
    std::thread::sleep(time);
    let (after, took) = (machine.disks().stats(), began.elapsed());
    match after.errors - before.errors {
        0 => Ok((after.requests - before.requests) as f64 / took.as_secs_f64()),
        n => Err(format!("{n} reads failed")),
    }
}

/// Reads a second by fio.
fn fio(args: &Args, image: &Path) -> Result<f64, String> {
    let output = Command::new("fio")
        .args(["--name=reads", "--rw=randread", "--bs=4k", "--direct=1"])
        .args([
            "--ioengine=io_uring",
            "--time_based",
            "--output-format=json",
        ])
        .arg(format!("--filename={}", image.display()))
        .arg(format!("--iodepth={}", args.depth))
        .arg(format!("--runtime={}", args.seconds))
        .output()
        .map_err(|e| format!("fio: {e} (apt-get install fio)"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let report: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    number(&report, "/jobs/0/read/iops")
}

fn run(args: &Args) -> Result<bool, String> {
    let dir = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .map_err(|e| e.to_string())?;
    let image = dir.path().join("disk.img");
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| ((i * 31) >> 3) as u8).collect();
    let whole = data.repeat(args.mib as usize);
    std::fs::write(&image, whole).map_err(|e| e.to_string())?;
    let (mut ours, mut theirs, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let (guest, fio) = (guest(args, &image)?, fio(args, &image)?);
        ours.push(guest);
        theirs.push(fio);
        shares.push(guest / fio);
    }
    let (ours, theirs, share) = (median(&ours), median(&theirs), median(&shares));
    let bars = [judged(
        "fio's reads of 4 KiB a second / the guest's",
        1.0 / share,
        1.0 / SHARE,
    )];
    if args.json {
        let out = json!({ "guest": ours, "fio": theirs, "share": share, "bars": bars });
        println!("{out:#}");
    } else {
        println!(
            "{} reads in flight, median of {} runs",
            args.depth, args.runs
        );
        println!("guest {ours:>9.0} reads/s\nfio   {theirs:>9.0} reads/s\nshare {share:>9.2}");
        bars::print(&bars);
    }
    Ok(bars::all_within(&bars))
}

fn main() -> ExitCode {
    bars::exit("disk", run(&Args::parse()))
}
