//! The README's two hosts, line by line in a shell.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::path::Path;
use std::process::Command;

use common::demo::ran;
use common::{BIN, kvm};

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
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let own = dir.join("config/examples");
    std::fs::create_dir_all(&own).unwrap();
    let [.., high, low] = std::process::id().to_be_bytes();
    let mine = |text: &str| {
        text.replace("127.0.0.", &format!("127.{}.{low}.", high.max(1)))
            .replace("/tmp/vmferry-", &format!("{}/", dir.display()))
    };
    for name in ["host-a.toml", "host-b.toml"] {
        let text = std::fs::read_to_string(examples.join(name)).unwrap();
        std::fs::write(own.join(name), mine(&text)).unwrap();
    }
    mine(&lines())
}

#[test]
fn the_two_hosts_of_the_readme_work_as_they_are_written() {
    let dir = tempfile::Builder::new().prefix("vmf").tempdir().unwrap();
    let script = clone(dir.path());
    // The binary is built already.
    assert!(script.starts_with("cargo build --release\n"));
    let script = script.replacen("cargo build --release\n", "", 1);
    let target = Path::new(BIN).parent().unwrap().display().to_string();
    assert!(script.contains("$PWD/target/release:"));
    let script = script.replace("$PWD/target/release:", &format!("{target}:"));
    // Job control as in a shell that somebody types into; services end with the test.
    let script = format!("set -eumo pipefail\ntrap 'kill %1 %2 2>/dev/null' ERR\n{script}");
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).current_dir(dir.path());
    let done = ran(&mut shell);
    assert_eq!(done.code, Some(0), "{done:?}");
    let machine = if kvm() { "kvm" } else { "process" };
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
}
