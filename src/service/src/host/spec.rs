//! From a user's description of a machine to the machine's configuration, and back to words where
//! it makes no sense. Pure.

use std::path::Path;

use vmferry_block::{DiskSource, DiskSpec};
use vmferry_machine::config::MAX_VCPUS;
use vmferry_machine::{Boot, Console, MAX_DISKS, MachineConfig, MachineKind};

use crate::model::{BootSpec, MigrationOptions, VmSpec};
use crate::rules::{VM_NAME_RULE, is_vm_name, option_problems};

/// Files of the consoles in a VM's directory.
pub(super) const SERIAL: &str = "serial.log";
pub(super) const DEBUG: &str = "debug.log";

const MIB: u64 = 1 << 20;

/// Whether a machine can be called so.
///
/// # Errors
/// In words.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match is_vm_name(name) {
        true => Ok(()),
        false => Err(format!(
            "a VM cannot be called {name:?}: take {VM_NAME_RULE}"
        )),
    }
}

/// The sort of machine that `spec` asks for, on a host that has KVM or not.
///
/// # Errors
/// In words.
pub(super) fn kind(spec: &VmSpec, kvm: bool) -> Result<MachineKind, String> {
    match (spec.machine.as_str(), kvm) {
        ("kvm", _) | ("auto", true) => Ok(MachineKind::Kvm),
        ("process", _) | ("auto", false) => Ok(MachineKind::Process),
        (other, _) => Err(format!(
            "no machine is called {other:?}: it is kvm, process or auto"
        )),
    }
}

/// The disks of `spec`.
///
/// # Errors
/// In words, all that is wrong.
pub(super) fn disks(spec: &VmSpec) -> Result<Vec<DiskSpec>, String> {
    let mut wrong = Vec::new();
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let queues = disk.queues.unwrap_or(spec.vcpus.clamp(1, 8) as u16);
        let made = disk.source.parse::<DiskSource>().and_then(|source| {
            let made = DiskSpec {
                source,
                read_only: disk.read_only,
                serial: disk.serial.clone(),
                queues,
                delay_ms: disk.delay_ms,
            };
            made.check().map(|()| made)
        });
        match made {
            Ok(disk) => disks.push(disk),
            Err(why) => wrong.push(format!("disk '{}': {why}", disk.source)),
        }
    }
    if spec.disks.len() > MAX_DISKS {
        wrong.push(format!(
            "{} disks: at most {MAX_DISKS} are possible",
            spec.disks.len()
        ));
    }
    match wrong.is_empty() {
        true => Ok(disks),
        false => Err(wrong.join("; ")),
    }
}

/// The configuration of a machine whose VM's directory is `dir`.
///
/// # Errors
/// In words, all that is wrong with the description.
pub(super) fn config(spec: &VmSpec, kvm: bool, dir: &Path) -> Result<MachineConfig, String> {
    let mut wrong = Vec::new();
    let mut note = |result: Result<(), String>| wrong.extend(result.err());
    note(check_name(&spec.name));
    if spec.ram_mib == 0 || !spec.ram_mib.is_multiple_of(2) || spec.ram_mib > u64::MAX / MIB {
        note(Err(format!(
            "{} MiB of RAM: give an even number, 2 at least",
            spec.ram_mib
        )));
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        note(Err(format!("{} vCPUs: give 1 to {MAX_VCPUS}", spec.vcpus)));
    }
    let kind = kind(spec, kvm);
    note(kind.as_ref().map(|_| ()).map_err(Clone::clone));
    let disks = disks(spec);
    note(disks.as_ref().map(|_| ()).map_err(Clone::clone));
    match (kind, disks) {
        (Ok(kind), Ok(disks)) if wrong.is_empty() => Ok(MachineConfig {
            kind,
            ram_bytes: spec.ram_mib * MIB,
            vcpus: spec.vcpus,
            boot: boot(&spec.boot),
            serial: Console::File(dir.join(SERIAL)),
            debugcon: Console::File(dir.join(DEBUG)),
            dirty_rings: spec.dirty_rings,
            disks,
        }),
        _ => Err(wrong.join("; ")),
    }
}

fn boot(spec: &BootSpec) -> Boot {
    match spec {
        BootSpec::Workload { cmdline } => Boot::Workload {
            cmdline: cmdline.clone(),
        },
        BootSpec::Kernel {
            kernel,
            initrd,
            cmdline,
        } => Boot::Kernel {
            kernel: kernel.into(),
            initrd: initrd.as_ref().map(Into::into),
            cmdline: cmdline.clone(),
        },
    }
}

/// Files that a machine needs to be booted: what each is, and its path.
pub(super) fn files(spec: &VmSpec) -> Vec<(&'static str, String)> {
    match &spec.boot {
        BootSpec::Workload { .. } => Vec::new(),
        BootSpec::Kernel { kernel, initrd, .. } => {
            let initrd = initrd.iter().map(|path| ("initial RAM disk", path.clone()));
            let kernel = ("kernel", kernel.clone());
            std::iter::once(kernel).chain(initrd).collect()
        }
    }
}

/// Whether a migration can be done so.
///
/// # Errors
/// In words, all that is wrong.
pub(super) fn check_options(options: &MigrationOptions) -> Result<(), String> {
    let wrong = option_problems(options);
    let words = wrong.iter().map(|(field, what)| format!("{field}: {what}"));
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(words.collect::<Vec<_>>().join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskSpecification;

    fn spec() -> VmSpec {
        serde_json::from_str(r#"{"name": "web-1", "ram_mib": 64}"#).unwrap()
    }

    #[test]
    fn a_description_becomes_a_machine_with_its_consoles_in_its_directory() {
        let mut spec = spec();
        spec.vcpus = 3;
        spec.disks = vec![DiskSpecification {
            source: "file:/d.img".to_owned(),
            read_only: true,
            serial: "s".to_owned(),
            queues: None,
            delay_ms: 0,
        }];
        let made = config(&spec, false, Path::new("/vms/web-1")).unwrap();
        assert_eq!(made.kind, MachineKind::Process);
        assert_eq!(made.ram_bytes, 64 << 20);
        assert_eq!(made.disks[0].queues, 3);
        assert_eq!(made.serial, Console::File("/vms/web-1/serial.log".into()));
        let made = config(&spec, true, Path::new("/")).unwrap();
        assert_eq!(made.kind, MachineKind::Kvm);
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let mut spec = spec();
        spec.name = "Web 1".to_owned();
        spec.machine = "qemu".to_owned();
        spec.ram_mib = 3;
        spec.vcpus = 9;
        spec.disks = vec![DiskSpecification {
            source: "/d.img".to_owned(),
            read_only: false,
            serial: String::new(),
            queues: None,
            delay_ms: 0,
        }];
        let wrong = config(&spec, true, Path::new("/")).unwrap_err();
        for part in ["Web 1", "qemu", "3 MiB", "9 vCPUs", "/d.img"] {
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
    }

    #[test]
    fn options_are_checked_and_completed() {
        let wanted = MigrationOptions {
            streams: Some(4),
            ..Default::default()
        };
        let defaults = MigrationOptions {
            streams: Some(2),
            codec: Some("lz4".to_owned()),
            ..Default::default()
        };
        let both = wanted.or(&defaults);
        assert_eq!(both.streams, Some(4));
        assert_eq!(both.codec.as_deref(), Some("lz4"));
        assert_eq!(check_options(&both), Ok(()));
        let bad = MigrationOptions {
            transport: Some("pigeon".to_owned()),
            streams: Some(0),
            ..Default::default()
        };
        let wrong = check_options(&bad).unwrap_err();
        assert!(
            wrong.starts_with("transport: ") && wrong.contains("; streams: 0"),
            "{wrong}"
        );
        let auto = MigrationOptions {
            tracker: Some("auto".to_owned()),
            codec: Some("auto".to_owned()),
            group: Some("auto".to_owned()),
            ..Default::default()
        };
        assert_eq!(check_options(&auto), Ok(()));
    }
}
