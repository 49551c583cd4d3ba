//! `vmferry doctor`: what this host can do, and what would be used.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use serde::Serialize;
use vmferry_memory::GuestRam;
use vmferry_tracker::{TrackerKind, default_kind, make};

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

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// What it is, or what is in the way.
    detail: String,
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    Finding { what, ok, detail }
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

fn wp_async() -> Result<String, String> {
    let ram = GuestRam::new(2 << 20).map_err(|e| e.to_string())?;
    match make(TrackerKind::WpAsync, ram.into(), None) {
        Ok(_) => Ok("userfaultfd write protection, asynchronous".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn findings() -> Vec<Finding> {
    let kvm = kvm_usable();
    let machine = match &kvm {
        Ok(()) => "demo --machine auto uses a KVM machine",
        Err(_) => "demo --machine auto uses a process machine",
    };
    let (tracker, why) = default_kind(kvm.is_ok());
    vec![
        finding("kvm", kvm.map(|()| format!("{KVM} can be used"))),
        finding("huge-pages", huge_pages()),
        finding("wp-async", wp_async()),
        finding("machine", Ok(machine.to_owned())),
        finding(
            "tracker",
            Ok(format!("--tracker auto uses {tracker}: {why}")),
        ),
    ]
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
