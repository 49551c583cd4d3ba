//! The part of the command line that a host service carries out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use vmferry_machine::DiskSource;
use vmferry_service::model::MigrationOptions;

use super::demo::TransportArg;
use super::parse::{
    codec, duration, group, link_limit, migration_id, ram, tail, throttle, tracker, vm_name,
};

/// Where a host service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A socket on this machine.
    Unix(PathBuf),
    /// `https://HOST[:PORT]`, without a slash at the end.
    Https(String),
}

impl Address {
    /// Whether paths mean the same there and here.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|p| !p.is_empty()) {
            return Ok(Self::Unix(Path::new(path).to_owned()));
        }
        let url = text.trim_end_matches('/');
        if let Some(rest) = url.strip_prefix("https://").filter(|r| !r.is_empty()) {
            return match rest.contains(['/', '?', '#', '@', ' ']) {
                true => {
                    Err("give the host and the port only, as in https://host-a:7070".to_owned())
                }
                false => Ok(Self::Https(url.to_owned())),
            };
        }
        Err("give unix:PATH, or https://HOST:PORT (and --cert, --key and --ca)".to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https(url) => f.write_str(url),
        }
    }
}

const REACH: &str = "Host service";

/// How a host service is reached, and how it is answered.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// The host service to ask: unix:PATH, or https://HOST:PORT
    #[arg(long, global = true, env = "VMFERRY_HOST", value_name = "URL|unix:PATH",
        default_value = "unix:/run/vmferry/api.sock", help_heading = REACH)]
    pub(crate) host: Address,
    /// Certificate to show to a host, for https (PEM)
    #[arg(long, global = true, env = "VMFERRY_CERT", value_name = "FILE", help_heading = REACH)]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, global = true, env = "VMFERRY_KEY", value_name = "FILE", help_heading = REACH)]
    pub(crate) key: Option<PathBuf>,
    /// Authority that the host's certificate has to come from (PEM)
    #[arg(long, global = true, env = "VMFERRY_CA", value_name = "FILE", help_heading = REACH)]
    pub(crate) ca: Option<PathBuf>,
    /// Print the API's documents as JSON; while something is waited for, one a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// A machine by its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct NameArg {
    /// The machine's name
    #[arg(value_name = "NAME", value_parser = vm_name)]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Make a machine and boot it
    Create(Box<CreateArgs>),
    /// List the machines of the host
    #[command(visible_alias = "ls")]
    List,
    /// Show a machine and its description
    Show(NameArg),
    /// Stop its vCPUs
    Pause(NameArg),
    /// Let them run on
    Resume(NameArg),
    /// End the machine; its description stays
    Stop(NameArg),
    /// Boot a machine that was stopped, or that died with its process
    Start(NameArg),
    /// Forget a machine that is stopped
    #[command(visible_alias = "rm")]
    Delete(NameArg),
    /// Have the built-in workload verify its memory and its disk (exit code 3 where it finds fault)
    Verify(NameArg),
    /// Print what the machine has said last on its console
    Console(ConsoleArgs),
    /// Vouch that writes of a former host have ended, so that their ranges of the disks open again
    SettleStorage(SettleArgs),
    /// Decide where a guest is of which neither host of its migration can know
    Decide(DecideArgs),
}

/// A machine to make: from a file, or from options.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The machine's name: 1 to 63 lower-case letters, digits and hyphens (with --file: in place of
    /// the one there)
    #[arg(value_name = "NAME", value_parser = vm_name, required_unless_present = "file")]
    pub(crate) name: Option<String>,
    /// Its description as TOML or JSON, as `vm show --json` prints under "spec"; - is stdin
    #[arg(long, short = 'f', value_name = "SPEC", conflicts_with_all = [
        "ram", "vcpus", "machine", "workload", "kernel", "disk", "dirty_rings"])]
    pub(crate) file: Option<PathBuf>,
    /// RAM, as in 512M or 4G (a multiple of 2 MiB)
    #[arg(long, value_name = "SIZE", value_parser = ram, required_unless_present = "file")]
    pub(crate) ram: Option<u64>,
    /// Virtual processors
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) vcpus: u32,
    /// Kind of machine: kvm, process, or auto (kvm where the host can)
    #[arg(long, default_value = "auto", value_parser = ["auto", "kvm", "process"])]
    pub(crate) machine: String,
    /// What the built-in workload does, as in 'workload=dense ws-mib=64 rate=0'
    #[arg(long, value_name = "S", conflicts_with = "kernel")]
    pub(crate) workload: Option<String>,
    /// Boot this PVH ELF in place of the built-in workload
    #[arg(long, value_name = "ELF")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// Command line for --kernel
    #[arg(long, value_name = "S", requires = "kernel")]
    pub(crate) cmdline: Option<String>,
    /// A disk: file:PATH or nbd://HOST:PORT/EXPORT, the same on all hosts; may be given again.
    /// After it, with commas: ro, serial=ID, queues=N, delay-ms=N
    #[arg(long, value_name = "DISK[,ro][,serial=ID]…")]
    pub(crate) disk: Vec<DiskOption>,
    /// Make it so that KVM's dirty rings can track it (--tracker kvm-ring)
    #[arg(long)]
    pub(crate) dirty_rings: bool,
    /// Print the machine's name only
    #[arg(long, short = 'q', conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// A disk as in `nbd://storage:10809/web-1,ro,serial=root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskOption {
    pub(crate) source: DiskSource,
    pub(crate) read_only: bool,
    pub(crate) serial: String,
    pub(crate) queues: Option<u16>,
    pub(crate) delay_ms: u32,
}

impl FromStr for DiskOption {
    type Err = String;

    /// What follows the last comma that is no option belongs to the source: URIs may have commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Self {
            source: DiskSource::Nbd(String::new()),
            read_only: false,
            serial: String::new(),
            queues: None,
            delay_ms: 0,
        };
        let mut rest = text;
        while let Some((before, word)) = rest.rsplit_once(',') {
            let number = |value: &str| format!("'{value}' in '{word}' is no number that fits");
            match word.split_once('=') {
                None if word == "ro" => disk.read_only = true,
                Some(("serial", id)) if id.len() <= 20 => disk.serial = id.to_owned(),
                Some(("serial", id)) => return Err(format!("'{id}' is longer than 20 characters")),
                Some(("queues", n)) => disk.queues = Some(n.parse().map_err(|_| number(n))?),
                Some(("delay-ms", n)) => disk.delay_ms = n.parse().map_err(|_| number(n))?,
                _ => break,
            }
            rest = before;
        }
        disk.source = rest.parse()?;
        Ok(disk)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    #[command(flatten)]
    pub(crate) vm: NameArg,
    /// The debug port in place of the serial port
    #[arg(long)]
    pub(crate) debug: bool,
    /// Go on printing what it says, until Ctrl-C
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// How much of what it has said before
    #[arg(long, default_value = "64K", value_name = "SIZE", value_parser = tail)]
    pub(crate) tail: u64,
    /// Leave control characters as they are, also on a terminal, which they may garble
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SettleArgs {
    #[command(flatten)]
    pub(crate) vm: NameArg,
    /// What you vouch for: no process of a former host has writes to these disks on their way
    #[arg(long, required = true)]
    pub(crate) nobody_else_writes: bool,
}

/// Where a guest is.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("place").required(true))]
pub(crate) struct DecideArgs {
    #[command(flatten)]
    pub(crate) vm: NameArg,
    /// It is here: it runs on, or can be started
    #[arg(long, group = "place")]
    pub(crate) here: bool,
    /// It is at the other host of its migration: it is forgotten here
    #[arg(long, group = "place")]
    pub(crate) elsewhere: bool,
    /// You have made sure of it; without, you are told of what
    #[arg(long)]
    pub(crate) certain: bool,
}

const HOW: &str = "How it moves (as the host is configured, where nothing is said)";

/// How machines are moved.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OptionArgs {
    /// How pages travel
    #[arg(long, value_enum, help_heading = HOW)]
    transport: Option<TransportArg>,
    /// Page streams, 1 to 64
    #[arg(long, value_name = "N", help_heading = HOW, value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,
    /// auto (what has each chunk there soonest; measured), raw, lz4, zstd[:LEVEL], brotli[:LEVEL]
    #[arg(long, value_name = "CODEC", help_heading = HOW, value_parser = codec)]
    codec: Option<String>,
    /// Most MiB of pages that are kept as they were sent, to send differences (with codec auto);
    /// 0 sends none
    #[arg(long, value_name = "MIB", help_heading = HOW, value_parser = clap::value_parser!(u32).range(0..=65536))]
    delta_cache_mib: Option<u32>,
    /// wp-group, kvm-log, kvm-ring, wp-async, or auto (what costs a guest least there; measured)
    #[arg(long, value_name = "TRACKER", help_heading = HOW, value_parser = tracker)]
    tracker: Option<String>,
    /// Pages that wp-group handles as one: auto, or a size from 4k to 32m
    #[arg(long, value_name = "SIZE", help_heading = HOW, value_parser = group)]
    group: Option<String>,
    /// Slow writers down where the migration would not end otherwise: off, on, or the most of
    /// their time that they may be made to wait, in per cent
    #[arg(long, value_name = "off|on|PCT", help_heading = HOW, value_parser = throttle)]
    throttle: Option<u8>,
    /// Limit of the link in Mbit/s; 0 is no limit but the host's
    #[arg(long, value_name = "N", help_heading = HOW, value_parser = link_limit)]
    link_mbit: Option<u64>,
    /// Longest blackout to accept, as in 300ms
    #[arg(long, value_name = "TIME", help_heading = HOW, value_parser = duration)]
    max_blackout: Option<Duration>,
    /// Fewest passes before the pause
    #[arg(long, value_name = "N", help_heading = HOW, value_parser = clap::value_parser!(u32).range(1..=40))]
    min_passes: Option<u32>,
}

impl OptionArgs {
    /// As the API has them.
    pub(crate) fn options(&self) -> MigrationOptions {
        MigrationOptions {
            transport: self.transport.map(|t| t.name().to_owned()),
            streams: self.streams,
            codec: self.codec.clone(),
            delta_cache_mib: self.delta_cache_mib,
            tracker: self.tracker.clone(),
            group: self.group.clone(),
            throttle_pct: self.throttle,
            link_mbit: self.link_mbit,
            max_blackout_ms: self.max_blackout.map(|time| time.as_secs_f64() * 1e3),
            min_passes: self.min_passes,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The machine
    #[arg(value_name = "VM", value_parser = vm_name)]
    pub(crate) vm: String,
    /// The host to move it to: a peer's name as in the host's configuration, or the URL of its API
    #[arg(long, value_name = "HOST")]
    pub(crate) to: String,
    /// Say what stands against it and what it would be like; move nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Show how it gets on and wait for its end; Ctrl-C asks to cancel, a second one leaves
    #[arg(long, short = 'w')]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) how: OptionArgs,
}

/// A migration by its id.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdArg {
    /// The migration's id, or as much of its beginning as no other has
    #[arg(value_name = "ID", value_parser = migration_id)]
    pub(crate) id: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrationsCommand {
    /// List the migrations that the host remembers, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show a migration
    Show(ShowArgs),
    /// Print the report of a migration that has ended
    Report(IdArg),
    /// Write the trace of a migration
    Trace(TraceArgs),
    /// Cancel a migration, if that is still possible
    Cancel(IdArg),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) migration: IdArg,
    /// Go on showing it until it ends, as `migrate --wait` does
    #[arg(long, short = 'w')]
    pub(crate) wait: bool,
}

/// What a trace is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceFormat {
    /// Jaeger's own JSON, which its page opens under "JSON File"
    Jaeger,
    /// OTLP's JSON
    Otlp,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) migration: IdArg,
    /// What to write
    #[arg(long, value_enum, default_value = "jaeger")]
    pub(crate) format: TraceFormat,
    /// File to write; stdout where none is given
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Show what the host can do, its limits, its load and the hosts that it knows
    Show,
    /// Wait until the service answers, as after starting it
    Wait(WaitArgs),
    /// Move all machines away; past failures, until no more can be moved
    Drain(Box<DrainArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// How long at most
    #[arg(long = "for", default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub(crate) at_most: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Where to: a peer's name, or the URL of its API; given again, they are taken in turn
    #[arg(long, value_name = "HOST", required_unless_present_any = ["cancel", "show"])]
    pub(crate) to: Vec<String>,
    /// Migrations at once; as the host's limit where nothing is said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) parallel: Option<u32>,
    /// Begin no more of the drain under way, and cancel what is under way
    #[arg(long, conflicts_with_all = ["to", "parallel", "show"])]
    pub(crate) cancel: bool,
    /// Show the drain under way, or the last one
    #[arg(long, conflicts_with_all = ["to", "parallel"])]
    pub(crate) show: bool,
    /// Show how it gets on and wait for its end; Ctrl-C asks to cancel, a second one leaves
    #[arg(long, short = 'w')]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) how: OptionArgs,
}

#[cfg(test)]
mod tests;
