//! Builds the payload with the compiler that builds everything else: a freestanding static ELF
//! needs no target of its own.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).expect("cargo sets it"));
    let root = var("CARGO_MANIFEST_DIR");
    for path in ["build.rs", "payload", "src"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let status = Command::new(var("RUSTC"))
        .arg(root.join("payload/main.rs"))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=payload"])
        .args([
            "--target=x86_64-unknown-linux-gnu",
            "-Copt-level=3",
            "-Cpanic=abort",
        ])
        .args([
            "-Crelocation-model=static",
            "-Cstrip=symbols",
            "-Adead_code",
            "-Aunused_imports",
        ])
        .args([
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
        ])
        .args([
            "-Clink-arg=-no-pie",
            "-Clink-arg=-Wl,--build-id=none,-z,noexecstack",
        ])
        .arg(format!(
            "-Clink-arg=-Wl,-T,{}",
            root.join("payload/link.ld").display()
        ))
        .arg("-o")
        .arg(var("OUT_DIR").join("payload.elf"))
        .status()
        .expect("the compiler runs");
    assert!(
        status.success(),
        "the guest payload does not build: see the compiler's words above"
    );
}
