//! The same guest moved by vmferry and by QEMU, in turn, over links of the same speed on this
//! machine: what the guest loses while it is copied and while it stands, and the bytes.
//!
//! The guest is the built-in payload with the same command line, and what it loses is computed by
//! the same code from its heartbeats: vmferry notes them as they arrive, QEMU's are read from its
//! memory. Both make four passes, whatever they find, and then may stand for as long as it takes.
//! QEMU does what it does by default: dirty log, no auto-converge, no TLS (vmferry has TLS).
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin beside_qemu`

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde::Serialize;
use serde_json::{Map, Value, json};
use vmferry_benches::demo::{Demo, median, number};
use vmferry_benches::qemu::{self, Qemu, Watch};
use vmferry_engine::report::Moments;
use vmferry_engine::report::guest::{blackout_of_guest_ms, guest_report, work_went_backward};
use vmferry_machine::workload::monotonic_ns;

/// The link: 1500 Mbit/s, as bytes for QEMU.
const LINK_MBIT: u64 = 1500;
const LINK_BYTES: u64 = LINK_MBIT * 1_000_000 / 8;
/// Passes before the pause.
const PASSES: u64 = 4;
/// The guest, in the words of its command line and in those of the demo.
const GUEST: &str =
    "workload=dense ws-mib=256 fill-mib=704 rate=0 fill=30:40:30 seed=1 stride=1 vcpus=1";
const DEMO: &str = "--workload dense --ws-mib 256 --fill-mib 704 --rate 0 --fill 30:40:30 --seed 1 \
    --vcpus 1 --mem 2G --tracker wp-group --codec raw --transport tcp --link-mbit 1500 \
    --min-passes 4 --max-blackout 30s --warm-up 2s --run-for 0s";
const WARM_UP: Duration = Duration::from_secs(2);
/// A pause too short to be possible, so that QEMU goes on copying; and one that always is.
const NO_PAUSE_MS: u64 = 1;
const ANY_PAUSE_MS: u64 = 30_000;
/// Longest move.
const MOVE: Duration = Duration::from_secs(120);
/// What is looked at after the move, and a little.
const AFTER: Duration = Duration::from_millis(1100);

#[derive(Debug, Parser)]
struct Args {
    /// Moves by each
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// The binary (default: beside this one)
    #[arg(long)]
    vmferry: Option<PathBuf>,
    /// QEMU
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// QEMU's accelerator, as in kvm,dirty-ring-size=4096
    #[arg(long, default_value = "kvm")]
    accel: String,
    /// QEMU's processor. KVM without hardware virtualisation lacks an MSR that QEMU would set
    #[arg(long, default_value = "host,-arch-capabilities")]
    cpu: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A move. Rates are page touches a second.
#[derive(Clone, Debug, Serialize)]
struct Move {
    passes: f64,
    precopy_ms: f64,
    rate_before: f64,
    rate_during: f64,
    precopy_lost_ms: f64,
    precopy_lost_pct: f64,
    blackout_ms: f64,
    blackout_guest_ms: f64,
    lost_in_all_ms: f64,
    bytes: f64,
    /// What QEMU says of its downtime.
    downtime_said_ms: Option<f64>,
}

fn by_vmferry(demo: &Demo) -> Result<Move, String> {
    let report = demo.run(&DEMO.split_ascii_whitespace().collect::<Vec<_>>())?;
    let of = |path| number(&report, path);
    let passes = report["passes"].as_array().ok_or("no passes")?;
    let before: Vec<f64> = passes
        .iter()
        .filter(|p| p["final"] != true)
        .filter_map(|p| p["duration_ms"].as_f64())
        .collect();
    Ok(Move {
        passes: before.len() as f64,
        precopy_ms: before.iter().sum(),
        rate_before: of("/guest/work_rate_before")?,
        rate_during: of("/guest/work_rate_during")?,
        precopy_lost_ms: of("/guest/brownout_lost_ms")?,
        precopy_lost_pct: of("/guest/brownout_pct")?,
        blackout_ms: of("/blackout_ms")?,
        blackout_guest_ms: of("/blackout_guest_ms")?,
        lost_in_all_ms: of("/guest/lost_work_ms")?,
        bytes: of("/bytes_wire")?,
        downtime_said_ms: None,
    })
}

/// Both processes, the guest at work in the first.
struct Pair {
    source: Qemu,
    destination: Qemu,
    /// Where each has the guest's state in its memory.
    states: (u64, u64),
}

impl Pair {
    fn start(args: &Args) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let payload = dir.path().join("payload.elf");
        qemu::payload::write(&payload)?;
        let line = format!("{GUEST} tsc-khz={}", qemu::payload::tsc_khz());
        let start = |name: &str, more: &[&str]| {
            let mut all = machine(args, &payload, &line);
            all.extend(more.iter().map(|&word| word.to_owned()));
            Qemu::start(&args.qemu, &all, &dir.path().join(name))
        };
        let mut destination = start("b", &["-incoming", "tcp:127.0.0.1:0"])?;
        let mut source = start("a", &[])?;
        let states = (source.state_address()?, destination.state_address()?);
        source.wait_until_it_works(states.0)?;
        Ok(Self {
            source,
            destination,
            states,
        })
    }

    /// Begins to move; returns when. The link is one that is kept to while the guest stands, too.
    fn begin(&mut self) -> Result<u64, String> {
        for side in [&mut self.source, &mut self.destination] {
            let events = json!({"capability": "events", "state": true});
            side.call(
                "migrate-set-capabilities",
                &json!({"capabilities": [events]}),
            )?;
        }
        let port = self.destination.call("query-migrate", &json!({}))?;
        let port = port
            .pointer("/socket-address/0/port")
            .and_then(Value::as_str)
            .ok_or("the destination does not say its port")?;
        let link = TcpStream::connect(format!("127.0.0.1:{port}")).map_err(|e| e.to_string())?;
        qemu::pace(&link, LINK_BYTES)?;
        self.source.hand_over("link", &link)?;
        self.source.call(
            "migrate-set-parameters",
            &json!({"max-bandwidth": LINK_BYTES, "downtime-limit": NO_PAUSE_MS}),
        )?;
        let start_ns = monotonic_ns();
        self.source.call("migrate", &json!({"uri": "fd:link"}))?;
        Ok(start_ns)
    }

    /// Waits for the end of the move, which it may come to after `PASSES`. Returns when the guest
    /// was stopped, and the whole passes until then.
    fn finish(&mut self) -> Result<(u64, u64), String> {
        let began = Instant::now();
        let (mut stopped, mut passes, mut allowed) = (None, 0, false);
        while began.elapsed() < MOVE {
            for event in self.source.events()? {
                let status = &event["data"]["status"];
                match event["event"].as_str().unwrap_or_default() {
                    "STOP" => stopped = Some(time_ns(&event)?),
                    // It tells of the beginning of each; the last ones are those of the end.
                    "MIGRATION_PASS" if !allowed => {
                        passes = event["data"]["pass"].as_u64().unwrap_or(passes);
                    }
                    "MIGRATION" if status == "completed" => {
                        let stopped = stopped.ok_or("QEMU did not say when it stopped")?;
                        return Ok((stopped, passes.saturating_sub(1)));
                    }
                    "MIGRATION" if status == "failed" => {
                        return Err("QEMU's migration failed".to_owned());
                    }
                    _ => {}
                }
            }
            if !allowed && passes > PASSES {
                allowed = true;
                let limit = json!({"downtime-limit": ANY_PAUSE_MS});
                self.source.call("migrate-set-parameters", &limit)?;
            }
        }
        Err(format!("QEMU's migration does not end in {MOVE:?}"))
    }

    /// When the guest ran again.
    fn resumed(&mut self) -> Result<u64, String> {
        let deadline = Instant::now() + MOVE;
        while Instant::now() < deadline {
            let events = self.destination.events()?;
            if let Some(event) = events.iter().find(|e| e["event"] == "RESUME") {
                return time_ns(event);
            }
        }
        Err("the guest does not run at the destination".to_owned())
    }
}

/// What QEMU is to be. Its firmware's own DMA port is off, as the payload talks to that port.
fn machine(args: &Args, payload: &Path, line: &str) -> Vec<String> {
    let fixed = "-M q35 -m 2G -smp 1 -nodefaults -no-user-config -display none -serial none \
        -monitor none -no-reboot -global fw_cfg_io.dma_enabled=off";
    let mut all: Vec<String> = fixed.split_ascii_whitespace().map(str::to_owned).collect();
    let payload = payload.display().to_string();
    for (option, value) in [
        ("-accel", args.accel.as_str()),
        ("-cpu", &args.cpu),
        ("-kernel", &payload),
        ("-append", line),
    ] {
        all.extend([option.to_owned(), value.to_owned()]);
    }
    all
}

/// When an event happened, by the monotonic clock; QEMU says it by the other.
fn time_ns(event: &Value) -> Result<u64, String> {
    let part = |name: &str| event["timestamp"][name].as_u64();
    let (seconds, micros) = part("seconds")
        .zip(part("microseconds"))
        .ok_or("an event without a time")?;
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros))
        .map_err(|e| e.to_string())?;
    Ok(monotonic_ns() - since.as_nanos() as u64)
}

fn by_qemu(args: &Args) -> Result<Move, String> {
    let mut pair = Pair::start(args)?;
    let at_source = Watch::start(pair.source.pid(), pair.states.0);
    thread::sleep(WARM_UP);
    let start_ns = pair.begin()?;
    let (pause_ns, passes) = pair.finish()?;
    let resume_ns = pair.resumed()?;
    let at_destination = Watch::start(pair.destination.pid(), pair.states.1);
    thread::sleep(AFTER);
    let mut beats = at_source.end();
    // What it finds first has travelled there.
    beats.extend(at_destination.end().into_iter().skip(1));
    let said = pair.source.call("query-migrate", &json!({}))?;
    let moments = Moments {
        start_ns,
        pause_ns,
        resume_ns,
    };
    let beats = [beats];
    if work_went_backward(&beats) {
        return Err("the guest's work went backward at QEMU".to_owned());
    }
    let guest = guest_report(&beats, moments);
    let known = |figure: Option<f64>| figure.ok_or("too few heartbeats at QEMU");
    Ok(Move {
        passes: passes as f64,
        precopy_ms: (pause_ns - start_ns) as f64 / 1e6,
        rate_before: known(guest.work_rate_before)?,
        rate_during: known(guest.work_rate_during)?,
        precopy_lost_ms: known(guest.brownout_lost_ms)?,
        precopy_lost_pct: known(guest.brownout_pct)?,
        blackout_ms: (resume_ns - pause_ns) as f64 / 1e6,
        blackout_guest_ms: known(blackout_of_guest_ms(&beats, moments))?,
        lost_in_all_ms: known(guest.lost_work_ms)?,
        bytes: number(&said, "/ram/transferred")?,
        downtime_said_ms: said["downtime"].as_f64(),
    })
}

/// A figure of a move: its name, its unit, and itself.
type Figure = (&'static str, fn(&Move) -> f64);

const FIGURES: [Figure; 11] = [
    ("passes before the pause", |m| m.passes),
    ("pre-copy, ms", |m| m.precopy_ms),
    ("touches/s before, millions", |m| m.rate_before / 1e6),
    ("touches/s in pre-copy, millions", |m| m.rate_during / 1e6),
    ("work lost in pre-copy, ms", |m| m.precopy_lost_ms),
    ("speed lost in pre-copy, per cent", |m| m.precopy_lost_pct),
    ("blackout, ms", |m| m.blackout_ms),
    ("blackout as QEMU says, ms", |m| {
        m.downtime_said_ms.unwrap_or(f64::NAN)
    }),
    ("gap in the guest's heartbeat, ms", |m| m.blackout_guest_ms),
    ("work lost until 1 s after, ms", |m| m.lost_in_all_ms),
    ("bytes, millions", |m| m.bytes / 1e6),
];

fn measure(args: &Args) -> Result<(String, Vec<Move>, Vec<Move>), String> {
    let version = qemu::version(&args.qemu)?;
    let demo = Demo::new(args.vmferry.clone())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 1..=args.runs {
        eprintln!("vmferry, run {run} of {}", args.runs);
        ours.push(by_vmferry(&demo)?);
        eprintln!("QEMU, run {run} of {}", args.runs);
        theirs.push(by_qemu(args)?);
    }
    Ok((version, ours, theirs))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (version, ours, theirs) = match measure(&args) {
        Ok(measured) => measured,
        Err(error) => {
            eprintln!("beside_qemu: {error}");
            return ExitCode::FAILURE;
        }
    };
    let of = |moves: &[Move], figure: fn(&Move) -> f64| {
        median(&moves.iter().map(figure).collect::<Vec<_>>())
    };
    let lost = |moves: &[Move]| of(moves, |m| m.precopy_lost_ms);
    let ratio = lost(&ours) / lost(&theirs);
    if args.json {
        let medians: Map<String, Value> = FIGURES
            .iter()
            .map(|(name, figure)| {
                let both = json!({"vmferry": of(&ours, *figure), "qemu": of(&theirs, *figure)});
                ((*name).to_owned(), both)
            })
            .collect();
        let all = json!({
            "qemu_version": version,
            "medians": medians,
            "vmferry": ours,
            "qemu": theirs,
            "precopy_lost_vmferry_by_qemu": ratio,
        });
        println!("{all}");
        return ExitCode::SUCCESS;
    }
    println!("{version}; medians of {}", args.runs);
    println!(
        "{:34} {:>10} {:>10} {:>14}",
        "", "vmferry", "QEMU", "vmferry / QEMU"
    );
    for (name, figure) in FIGURES {
        let (a, b) = (of(&ours, figure), of(&theirs, figure));
        // What only one of them says.
        let said = |value: f64, digits: usize| match value {
            value if value.is_nan() => "-".to_owned(),
            value => format!("{value:.digits$}"),
        };
        let (by, a, b) = (said(a / b, 3), said(a, 1), said(b, 1));
        println!("{name:34} {a:>10} {b:>10} {by:>14}");
    }
    println!("work lost in pre-copy: vmferry / QEMU = {ratio:.4}");
    ExitCode::SUCCESS
}
