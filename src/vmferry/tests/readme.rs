//! The README's two hosts, line by line in a shell.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::path::Path;
use std::process::Command;

use common::demo::ran;
use common::{BIN, kvm_usable};
use vmferry_tests::hosts::{kill_processes_of, own_address};

/// The lines of the README's section, as they are.
fn lines() -> String {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("\n## Two hosts\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// A directory with what the section needs of the repository; addresses and directories are the
/// test's own, so that nothing else on this machine is in the way.
fn clone(dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let net = own_address(0).to_string();
    let net = net.strip_suffix('0').unwrap();
    let mine = |text: &str| {
        text.replace("127.0.0.", net)
            .replace("/tmp/vmferry-", &format!("{}/", dir.display()))
    };
    // All that a clone has there, and nothing that was made since.
    let mut list = Command::new("git");
    list.args(["ls-files", "config/examples"])
        .current_dir(&root);
    let listed = ran(&mut list);
    listed.ok();
    assert!(listed.stdout.contains("host-a.toml"), "{listed:?}");
    for name in listed.stdout.lines() {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.join(name), mine(&text)).unwrap();
    }
    mine(&lines())
}

struct Processes<'a>(&'a Path);

impl Drop for Processes<'_> {
    fn drop(&mut self) {
        kill_processes_of(self.0);
    }
}

#[test]
fn the_two_hosts_of_the_readme_work_as_they_are_written() {
    let dir = tempfile::Builder::new().prefix("vmf").tempdir().unwrap();
    // Services and machines end with the test, whatever its end.
    let _guard = Processes(dir.path());
    let script = clone(dir.path());
    // The binary is built already.
    assert!(script.starts_with("cargo build --release\n"));
    let script = script.replacen("cargo build --release\n", "", 1);
    let target = Path::new(BIN).parent().unwrap().display().to_string();
    assert!(script.contains("$PWD/target/release:"));
    let script = script.replace("$PWD/target/release:", &format!("{target}:"));
    // Job control as in a shell that somebody types into.
    let script = format!("set -eumo pipefail\n{script}");
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).current_dir(dir.path());
    let done = ran(&mut shell);
    assert_eq!(done.code, Some(0), "{done:?}");
    let machine = if kvm_usable() { "kvm" } else { "process" };
    for said in [
        "web-1 can move to host-b",
        &format!("machine    {machine}"),
        "web-1: OK",
        "completed",
    ] {
        assert!(done.stdout.contains(said), "no {said:?} in {done:?}");
    }
    let trace = std::fs::read_to_string(dir.path().join("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    assert_eq!(trace["data"].as_array().unwrap().len(), 1);
    let trace = trace.to_string();
    for told in ["\"migration\"", "\"receive\"", "\"host-a\"", "\"host-b\""] {
        assert!(trace.contains(told), "no {told} in {trace}");
    }
}
