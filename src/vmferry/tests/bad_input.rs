//! What a user may get wrong on the command line or lack on the host: one clear line on stderr, an
//! exit code that is not 0, and nothing on stdout.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::demo::{demo, ran, vmferry};
use common::nobody::{Nobody, is_root};

/// An ELF file that is right but for what is left out: one segment at `address`, and no notes.
fn elf(address: u64) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for quad in [address, 64, 0] {
        file.extend(quad.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes());
    }
    for quad in [0, address, address, 120, 4096, 4096] {
        file.extend(u64::to_le_bytes(quad));
    }
    file
}

fn kernel_fails(content: Option<&[u8]>, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("the-kernel");
    if let Some(content) = content {
        fs::write(&path, content).unwrap();
    }
    let run = demo(&format!("--machine kvm --kernel {}", path.display()));
    run.failed(&[&["the-kernel"], words].concat());
}

#[test]
fn kvm_kernels_that_are_none() {
    if !common::kvm() {
        return;
    }
    kernel_fails(None, &["No such file"]);
    kernel_fails(Some(b""), &["is not an ELF file"]);
    kernel_fails(Some(&[0x55; 100_000]), &["is not an ELF file"]);
    kernel_fails(Some(&elf(1 << 20)[..100]), &["garbled"]);
    kernel_fails(Some(&elf(1 << 20)), &["no PVH entry note", "CONFIG_PVH=y"]);
    kernel_fails(Some(&elf(0x1000)), &["below 1 MiB"]);
    kernel_fails(Some(&elf(1 << 30)), &["more RAM"]);
    // A program of the host, and a directory.
    let own = std::env::current_exe().unwrap();
    demo(&format!("--machine kvm --kernel {}", own.display())).failed(&["the kernel"]);
    demo("--machine kvm --kernel /").failed(&["not a regular file"]);
}

#[test]
fn kvm_initial_ram_disk_that_is_not_there() {
    if !common::kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, vmferry_guest::PAYLOAD).unwrap();
    let kernel = kernel.display();
    let run = demo(&format!(
        "--machine kvm --kernel {kernel} --initrd /no/such"
    ));
    run.failed(&["/no/such", "No such file"]);
}

#[test]
fn process_machine_boots_no_kernel() {
    demo("--machine process --kernel /no/such").failed(&["process machine", "/dev/kvm"]);
}

#[test]
fn process_machine_has_no_kvm_log() {
    demo("--machine process --tracker kvm-log").failed(&["kvm-log needs a KVM machine"]);
}

fn ram_is_refused(kind: &str) {
    let with = |words: &str| demo(&format!("--machine {kind} {words}"));
    with("--mem 8M --ws-mib 64").failed(&["MiB of RAM"]);
    with("--mem 64M --ws-mib 1 --fill-mib 64").failed(&["MiB of RAM"]);
    with("--mem 3M --ws-mib 1").failed(&["multiple of 2 MiB"]);
    with("--mem 0").failed(&["multiple of 2 MiB"]);
    with("--mem 1000000000").failed(&["multiple of 2 MiB"]);
    with("--mem 1000T").failed(&["more than"]);
}

#[test]
fn kvm_ram_that_cannot_be() {
    if common::kvm() {
        ram_is_refused("kvm");
    }
}

#[test]
fn process_ram_that_cannot_be() {
    ram_is_refused("process");
}

#[test]
fn kvm_consoles_that_cannot_be_written() {
    if !common::kvm() {
        return;
    }
    for option in ["--serial", "--debugcon"] {
        let run = demo(&format!("--machine kvm {option} /no/such/file"));
        run.failed(&["console", "/no/such/file", "No such file"]);
        demo(&format!("--machine kvm {option} /")).failed(&["console", "'/'"]);
    }
}

#[test]
fn unknown_values_are_named_with_what_there_is() {
    for (words, known) in [
        ("--workload w", "rewrite-same"),
        ("--codec rar", "zstd"),
        ("--tracker t", "kvm-log"),
        ("--transport udp", "quic"),
        ("--machine xen", "process"),
        ("--fill 1:2:3", "sum to 100"),
        ("--mem much", "512M"),
        ("--vcpus 0", "1..=8"),
        ("--streams 65", "1..=64"),
        ("--hops 0", "1..=1000"),
        ("--max-blackout 3", "300ms"),
        ("--rate fast", "--rate"),
        ("--no-such", "--no-such"),
        ("--cmdline c", "--kernel"),
    ] {
        let run = vmferry(["demo"].into_iter().chain(words.split(' ')));
        assert_eq!(run.code, Some(2), "{words}: {run:?}");
        assert_eq!(run.stdout, "", "{words}");
        assert!(run.stderr.starts_with("error: "), "{words}: {run:?}");
        assert!(run.stderr.contains(known), "{words}: {run:?}");
    }
}

/// Root may do everything, so the binary is run by somebody else, from where he may read it.
#[test]
fn kvm_without_permission() {
    let mode = fs::metadata("/dev/kvm").map(|m| m.permissions().mode());
    if !mode.is_ok_and(|mode| mode & 0o006 == 0) {
        return println!("SKIPPED (no /dev/kvm)");
    }
    if !is_root() && common::kvm() {
        return println!("SKIPPED: whoever runs this may use /dev/kvm, and cannot be anybody else");
    }
    let nobody = Nobody::new();
    let mut command = nobody.command();
    command.args(["demo", "--json", "--machine", "kvm", "--mem", "256M"]);
    ran(&mut command).failed(&["no permission", "/dev/kvm", "group"]);
}
