//! `vmferry doctor`: what this host can do, and what would be used.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use serde::Serialize;
use vmferry_block::{DiskSource, DiskSpec, Role};
use vmferry_engine::report::TrackerCost;
use vmferry_tracker::TrackerKind;
use vmferry_tracker::auto::{self, Choice, MachineSort, Measured};

use crate::cli::DoctorArgs;
use crate::{Exit, fail};

const KVM: &str = "/dev/kvm";

/// Whether /dev/kvm can be used, or what is in the way and what to do.
pub(crate) fn kvm_usable() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(format!(
            "{KVM} does not exist: load kvm_intel or kvm_amd, or switch virtualization on in the \
             firmware"
        )),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "no permission to use {KVM}: join the group that owns it (usually kvm), or run as root"
        )),
        Err(e) => Err(format!("{KVM} cannot be opened: {e}")),
    }
}

/// Whether a machine can have this disk here and be moved with it, or what is in the way.
pub(crate) fn disk_usable(spec: &DiskSpec) -> Result<(), String> {
    let disk = vmferry_block::open(spec, Role::Owner).map_err(|e| e.to_string())?;
    let may = disk.may_move();
    may.map_err(|why| format!("disk '{}': {why}", spec.source))
}

/// Whether disk images in the directory for temporary files can be used.
fn disk_images() -> Result<String, String> {
    let image = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    image
        .as_file()
        .set_len(1 << 20)
        .map_err(|e| e.to_string())?;
    disk_usable(&DiskSource::File(image.path().to_owned()).spec())?;
    let dir = std::env::temp_dir();
    Ok(format!(
        "images in {} are read and written directly, by io_uring, and can move",
        dir.display()
    ))
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// What it is, or what is in the way.
    detail: String,
    /// Of a tracker, what it costs a guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_per_page: Option<TrackerCost>,
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    Finding {
        what,
        ok,
        detail,
        ns_per_page: None,
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(path))
        .ok()
        .map(|s| s.trim().to_owned())
}

fn huge_pages() -> Result<String, String> {
    let setting = read("/sys/kernel/mm/transparent_hugepage/enabled")
        .ok_or("this kernel has no transparent huge pages: guests run slower")?;
    if setting.contains("[never]") {
        Err("transparent huge pages are off: write madvise to \
             /sys/kernel/mm/transparent_hugepage/enabled"
            .to_owned())
    } else {
        Ok(format!("transparent huge pages: {setting}"))
    }
}

/// What is known of each tracker, and the one that a machine made without wishes would get.
fn trackers(has_kvm: bool) -> (Vec<Measured>, Choice) {
    if !has_kvm {
        let choice = auto::pick(MachineSort::Process);
        return (choice.measured.clone(), choice);
    }
    let choice = auto::pick(MachineSort::Kvm);
    let mut measured = choice.measured.clone();
    let with_rings = auto::pick(MachineSort::KvmWithRings).measured;
    measured.extend(
        with_rings
            .into_iter()
            .filter(|m| m.kind == TrackerKind::KvmRing),
    );
    (measured, choice)
}

fn cost(measured: Measured) -> Finding {
    let detail = measured.cost.clone().map(|cost| {
        format!(
            "{:.0} ns a page for a guest that rewrites 2 MiB, {:.0} ns where it rewrites a page of it",
            cost.dense_ns, cost.sparse_ns
        )
    });
    Finding {
        ns_per_page: measured.cost.ok().map(TrackerCost::from),
        ..finding(measured.kind.name(), detail)
    }
}

fn findings() -> Vec<Finding> {
    let kvm = kvm_usable();
    let machine = match &kvm {
        Ok(()) => "demo --machine auto uses a KVM machine",
        Err(_) => "demo --machine auto uses a process machine",
    };
    let (measured, Choice { kind, why, .. }) = trackers(kvm.is_ok());
    let mut findings = vec![
        finding("kvm", kvm.map(|()| format!("{KVM} can be used"))),
        finding("huge-pages", huge_pages()),
        finding("machine", Ok(machine.to_owned())),
        finding("disk-images", disk_images()),
    ];
    findings.extend(measured.into_iter().map(cost));
    findings.push(finding(
        "tracker",
        Ok(format!("--tracker auto uses {kind}: {why}")),
    ));
    findings
}

/// Prints the findings. Fails only where it cannot print: a lack is an answer, not an error.
pub(crate) fn run(args: &DoctorArgs) -> Exit {
    let findings = findings();
    if args.json {
        match serde_json::to_string_pretty(&findings) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(&error),
        }
    } else {
        for f in &findings {
            let mark = if f.ok { "ok" } else { "NO" };
            println!("{mark}  {:<12} {}", f.what, f.detail);
        }
    }
    Exit::Ok
}
