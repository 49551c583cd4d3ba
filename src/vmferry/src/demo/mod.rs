//! `vmferry demo`: VM processes on this machine, a guest that moves between them, and proof that
//! it lost nothing. A thin front on the same engine that hosts use.

mod disk;
mod guest;
mod hop;
mod host;
mod show;

use std::io;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use vmferry_engine::report::{MigrationReport, ReportOutcome, render};
use vmferry_machine::{MachineConfig, MachineKind};
use vmferry_transports::TransportError;
use vmferry_transports::keys::Authority;
use vmferry_vmm::api::{Event, Request, WorkloadCommand};
use vmferry_vmm::client::ClientError;

use crate::cli::DemoArgs;
use crate::{Exit, fail};
use disk::Disk;
use host::Host;
use show::Show;

/// Why the demo could not go on.
#[derive(Debug, Error)]
pub(crate) enum DemoError {
    /// No temporary directory.
    #[error("cannot make a temporary directory")]
    Directory(#[source] io::Error),
    /// No disk.
    #[error("cannot make the guest's disk")]
    Disk(#[source] io::Error),
    /// No VM process.
    #[error("cannot start a VM process")]
    Start(#[source] io::Error),
    /// No keys, or no random numbers.
    #[error(transparent)]
    Keys(#[from] TransportError),
    /// A VM process did not do as asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A VM process has ended.
    #[error("the VM process of {0} has gone away")]
    HostGone(String),
    /// The guest has ended before its time.
    #[error("the guest {how}: {detail}")]
    GuestEnded {
        /// Crashed or stopped.
        how: &'static str,
        /// Why.
        detail: String,
    },
    /// Ctrl-C outside a migration.
    #[error("interrupted")]
    Interrupted,
    /// No signals.
    #[error("cannot listen for Ctrl-C")]
    Signals(#[source] io::Error),
    /// No random numbers for a token.
    #[error("{0}")]
    Random(String),
}

/// What is printed with `--json`: the last hop's report, and those before it.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    last: &'a MigrationReport,
    /// The hops before the last, in order; absent where there was one only.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    earlier_hops: &'a [MigrationReport],
}

/// Runs the demo.
pub(crate) fn run(args: DemoArgs) -> Exit {
    // Child processes and signals want one thread that stays.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Err(error) => fail(&error),
        Ok(runtime) => match runtime.block_on(demo(&args)) {
            Ok(reports) => finish(&args, &reports),
            Err(error) => fail(&error),
        },
    }
}

/// Prints what came of it.
fn finish(args: &DemoArgs, reports: &[MigrationReport]) -> Exit {
    let Some((last, earlier)) = reports.split_last() else {
        return Exit::Failed;
    };
    if args.json {
        let printed = Printed {
            last,
            earlier_hops: earlier,
        };
        match serde_json::to_string_pretty(&printed) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(&error),
        }
    } else {
        for report in reports {
            print!("{}", render(report));
        }
    }
    if let (true, Some(reason)) = (args.json, &last.reason) {
        eprintln!("vmferry: the migration did not complete: {reason}");
    }
    let verified = last.guest.verify.as_deref().is_none_or(|v| v == "OK");
    match last.outcome {
        _ if !verified => Exit::VerifyFailed,
        ReportOutcome::Completed => Exit::Ok,
        ReportOutcome::Cancelled => Exit::Cancelled,
        ReportOutcome::Failed | ReportOutcome::Undecided => Exit::Failed,
    }
}

async fn demo(args: &DemoArgs) -> Result<Vec<MigrationReport>, DemoError> {
    let show = Show::new().map_err(DemoError::Signals)?;
    let dir = tempfile::Builder::new()
        .prefix("vmferry-demo-")
        .tempdir()
        .map_err(DemoError::Directory)?;
    let authority = Authority::new()?;
    let disk = Disk::make(args, dir.path(), &show).await?;
    let mut hosts = Vec::new();
    for name in ["a", "b", "c"].iter().take(args.hops as usize + 1) {
        let name = format!("host-{name}");
        let at = dir.path().join(&name);
        hosts.push(Host::start(name, at, &authority).await?);
    }
    let reports = migrate_all(args, disk.as_ref(), &mut hosts, &show).await;
    show.end();
    for host in hosts {
        host.stop().await;
    }
    reports
}

async fn migrate_all(
    args: &DemoArgs,
    disk: Option<&Disk>,
    hosts: &mut [Host],
    show: &Show,
) -> Result<Vec<MigrationReport>, DemoError> {
    let config = guest::config(args, disk.map(|disk| &disk.spec));
    boot(args, config, &mut hosts[0], show).await?;
    let built_in = args.kernel.is_none();
    let (warm_up, run_for) = if built_in { (1, 1) } else { (3, 10) };
    let warm_up = args.warm_up.unwrap_or(Duration::from_secs(warm_up));
    let run_for = args.run_for.unwrap_or(Duration::from_secs(run_for));
    show.wait("the guest runs");
    let mut at = 0;
    run_on(&mut hosts[at], show, warm_up).await?;
    let mut reports = Vec::new();
    let mut backward = false;
    for n in 1..=args.hops {
        let to = (at + 1) % hosts.len();
        let (from_host, to_host) = two(hosts, at, to);
        show.step(&format!(
            "hop {n} of {}: {} → {}",
            args.hops, from_host.name, to_host.name
        ));
        let hop = hop::hop(args, from_host, to_host, show).await?;
        backward |= hop.backward;
        let arrived = hop.report.outcome == ReportOutcome::Completed;
        let undecided = hop.report.outcome == ReportOutcome::Undecided;
        reports.push(hop.report);
        if undecided {
            return Ok(reports);
        }
        if !arrived {
            break;
        }
        at = to;
    }
    show.wait("the guest runs on");
    run_on(&mut hosts[at], show, run_for).await?;
    if built_in && let Some(last) = reports.last_mut() {
        show.wait("the guest verifies its memory and its disk");
        let verdict = verify(&mut hosts[at], show).await?;
        if let (Some(io), "OK", Some(_)) = (&mut last.io, verdict.as_str(), disk) {
            // The guest's ledger says so: anything else would have been its verdict.
            (io.lost, io.duplicated) = (Some(0), Some(0));
        }
        last.guest.verify = Some(match verdict.as_str() {
            "OK" if backward => "FAIL work went backward".to_owned(),
            _ => verdict,
        });
    }
    Ok(reports)
}

/// Two different hosts at once.
fn two(hosts: &mut [Host], a: usize, b: usize) -> (&mut Host, &mut Host) {
    let (low, high) = hosts.split_at_mut(a.max(b));
    if a < b {
        (&mut low[a], &mut high[0])
    } else {
        (&mut high[0], &mut low[b])
    }
}

async fn boot(
    args: &DemoArgs,
    config: MachineConfig,
    host: &mut Host,
    show: &Show,
) -> Result<(), DemoError> {
    match config.kind {
        MachineKind::Kvm => show.step("a KVM guest boots in its VM process"),
        MachineKind::Process => show.step(
            "a process machine starts: the workload as native threads, NOT a virtual machine \
             (`vmferry doctor` says what is in the way of KVM)",
        ),
    }
    if config.kind == MachineKind::Process && (args.serial.is_some() || args.debugcon.is_some()) {
        show.step("a process machine has no consoles: nothing is written to their files");
    }
    host.call(Request::Boot(Box::new(config))).await?;
    if args.kernel.is_none() {
        show.wait("the guest fills its memory");
        until(host, show, |event| {
            matches!(event, Event::WorkloadReady).then_some(())
        })
        .await?;
    }
    Ok(())
}

async fn verify(host: &mut Host, show: &Show) -> Result<String, DemoError> {
    host.call(Request::Workload(WorkloadCommand::VerifySettled))
        .await?;
    until(host, show, |event| match event {
        Event::Verified { verdict } => Some(verdict),
        _ => None,
    })
    .await
}

/// Waits for an event of `host`; the guest's end and Ctrl-C are errors.
async fn until<T>(
    host: &mut Host,
    show: &Show,
    mut wanted: impl FnMut(Event) -> Option<T>,
) -> Result<T, DemoError> {
    loop {
        let event = tokio::select! {
            event = host.event() => event?,
            () = show.interrupted() => return Err(DemoError::Interrupted),
        };
        if let Event::GuestEnded { crashed, detail } = event {
            let how = if crashed { "crashed" } else { "stopped" };
            return Err(DemoError::GuestEnded { how, detail });
        }
        if let Some(found) = wanted(event) {
            return Ok(found);
        }
    }
}

/// Lets the guest run for a while.
async fn run_on(host: &mut Host, show: &Show, time: Duration) -> Result<(), DemoError> {
    match tokio::time::timeout(time, until(host, show, |_| None::<()>)).await {
        Err(_) => Ok(()),
        Ok(ended) => ended,
    }
}
