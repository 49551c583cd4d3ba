//! `--serial` and `--debugcon`: what the guest writes is in their files, from all its hosts.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::fs;
use std::path::Path;

use common::demo::demo;
use common::lab::{Host, Lab, Move};
use vmferry_machine::{Console, MachineKind};

/// Moves the guest, its debug console in `file`; then it verifies its memory.
async fn hop(from: &mut Host, to: &mut Host, file: &Path) {
    let mut hop = Move::new(from, to);
    hop.receive.debugcon = Console::File(file.to_owned());
    hop.complete(from, to).await;
    to.runs_unharmed().await;
}

#[test]
fn kvm_the_debug_console_is_appended_to_across_the_hops() {
    common::on(MachineKind::Kvm, async |kind| {
        let lab = Lab::new();
        let file = lab.path("debug.log");
        fs::write(&file, "before\n").unwrap();
        let mut hosts = [lab.host("a").await, lab.host("b").await];
        let mut config = common::busy_guest(kind);
        config.debugcon = Console::File(file.clone());
        hosts[0].boot(config).await;
        hosts[0].runs_unharmed().await;
        assert_eq!(fs::read_to_string(&file).unwrap(), "before\nVERIFY OK\n");
        let [a, b] = &mut hosts;
        hop(a, b, &file).await;
        hop(b, a, &file).await;
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("before\n{}", "VERIFY OK\n".repeat(3)));
    });
}

#[test]
fn kvm_the_demo_keeps_what_the_guest_says() {
    if !common::kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (serial, debug) = (dir.path().join("serial"), dir.path().join("debug"));
    let ran = demo(&format!(
        "--machine kvm --hops 2 --serial {} --debugcon {}",
        serial.display(),
        debug.display()
    ));
    ran.completed();
    assert_eq!(fs::read_to_string(debug).unwrap(), "VERIFY OK\n");
    // The workload does not use it, but it is there.
    assert_eq!(fs::read_to_string(serial).unwrap(), "");
}

#[test]
fn process_machine_has_none_and_says_so() {
    let ran = demo("--machine process --serial /no/such/file");
    ran.completed();
    assert!(ran.stderr.contains("no consoles"), "{}", ran.stderr);
    let ran = demo("--machine process");
    ran.completed();
    assert!(!ran.stderr.contains("no consoles"), "{}", ran.stderr);
}
