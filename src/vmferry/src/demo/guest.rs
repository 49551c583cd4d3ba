//! The guest of the demo: what it is made of, and what its heartbeats say afterwards.

use vmferry_engine::report::MigrationReport;
use vmferry_engine::report::guest::{
    Moments, blackout_of_guest_ms, guest_report, work_went_backward,
};
use vmferry_machine::{Beat, Boot, Console, DiskSpec, MachineConfig, MachineKind};
use vmferry_tracker::TrackerKind;

use crate::cli::{DemoArgs, MachineArg};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// The kind of machine that `args` ask for on this host.
pub(super) fn kind(args: &DemoArgs) -> MachineKind {
    match args.machine {
        MachineArg::Kvm => MachineKind::Kvm,
        MachineArg::Process => MachineKind::Process,
        MachineArg::Auto if crate::doctor::kvm_usable().is_ok() => MachineKind::Kvm,
        MachineArg::Auto => MachineKind::Process,
    }
}

fn console(file: Option<&std::path::PathBuf>) -> Console {
    file.map_or(Console::None, |path| Console::File(path.clone()))
}

/// The machine's configuration.
pub(super) fn config(args: &DemoArgs, disk: Option<&DiskSpec>) -> MachineConfig {
    let boot = match &args.kernel {
        Some(kernel) => Boot::Kernel {
            kernel: kernel.clone(),
            initrd: args.initrd.clone(),
            cmdline: args.cmdline.clone().unwrap_or_default(),
        },
        None => Boot::Workload {
            cmdline: match disk {
                Some(_) => format!("{} {}", workload(args), disk_work(args)),
                None => workload(args),
            },
        },
    };
    let kind = kind(args);
    MachineConfig {
        kind,
        ram_bytes: args.mem,
        vcpus: u32::from(args.vcpus),
        boot,
        serial: console(args.serial.as_ref()),
        debugcon: console(args.debugcon.as_ref()),
        // A machine has them from the start, or not at all.
        disks: disk.cloned().into_iter().collect(),
        dirty_rings: kind == MachineKind::Kvm && args.tracker == TrackerKind::KvmRing.name(),
    }
}

fn workload(args: &DemoArgs) -> String {
    let ws = u64::from(args.ws_mib);
    let fill = args
        .fill_mib
        .map_or_else(|| ws + (args.mem / MIB).saturating_sub(ws) / 4, u64::from);
    let stride = args.stride.map_or(1, |bytes| (bytes / PAGE).max(1));
    format!(
        "workload={} ws-mib={ws} fill-mib={fill} rate={} fill={} seed={} stride={stride}",
        args.workload, args.rate, args.fill, args.seed
    )
}

/// What the workload does with its disk.
fn disk_work(args: &DemoArgs) -> String {
    format!(
        "disk-depth={} disk-mib={} disk-rate={} disk-write={} disk-overlap={}",
        args.disk_depth, args.disk_mib, args.disk_rate, args.disk_write, args.disk_overlap
    )
}

/// Joins what both sides noted, and fills in the guest's part of the report. `None` where the
/// guest's work went backward, which it must never.
pub(super) fn fill_in(
    report: &mut MigrationReport,
    source: Vec<Vec<Beat>>,
    destination: Vec<Vec<Beat>>,
    moments: Moments,
) -> Option<()> {
    let mut joined = source;
    for (beats, more) in joined.iter_mut().zip(destination) {
        beats.extend(more);
    }
    report.blackout_guest_ms = blackout_of_guest_ms(&joined, moments);
    report.guest = guest_report(&joined, moments);
    (!work_went_backward(&joined)).then_some(())
}

/// How long after `resume_ns` the last vCPU to see a disk request completed saw its first, in
/// milliseconds; none where one saw none.
pub(super) fn first_after(disk: &[Vec<Beat>], resume_ns: u64) -> Option<f64> {
    let first = |beats: &Vec<Beat>| beats.iter().map(|b| b.time_ns).find(|ns| *ns >= resume_ns);
    let firsts: Option<Vec<u64>> = disk.iter().map(first).collect();
    let last = firsts?.into_iter().max()?;
    Some((last - resume_ns) as f64 / 1e6)
}
