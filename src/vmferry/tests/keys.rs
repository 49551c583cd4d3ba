//! `vmferry keys` and `vmferry config`: what the quick start does before there is a service.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::demo::vmferry;
use tempfile::TempDir;

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

/// An authority in `ca`, and a host's keys in `keys`.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (ca, keys) = (path(&dir, "ca"), path(&dir, "keys"));
    let run = vmferry(["keys", "authority", "--dir", &ca]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let run = vmferry([
        "keys",
        "host",
        "host-a",
        "--address",
        "127.0.0.1",
        "--authority",
        &ca,
        "--out",
        &keys,
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    dir
}

fn secret(file: &str) -> String {
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{file}");
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn keys_are_made_and_shown_and_none_is_printed() {
    let dir = made();
    let (ca, keys) = (path(&dir, "ca"), path(&dir, "keys"));
    let run = vmferry([
        "keys",
        "admin",
        "ann",
        "--days",
        "7",
        "--json",
        "--authority",
        &ca,
        "--out",
        &keys,
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let ann = run.report();
    assert_eq!(ann["certificate"]["name"], "admin-ann");
    assert_eq!(ann["certificate"]["role"], "user");
    let key = secret(ann["key"].as_str().unwrap());
    let line = key.lines().nth(1).unwrap();
    assert!(!run.stdout.contains(line) && !run.stderr.contains(line));
    secret(&path(&dir, "ca/ca.key"));
    secret(&path(&dir, "keys/host-a.key"));

    let file = path(&dir, "keys/host-a.pem");
    let run = vmferry(["keys", "show", &file, "--json"]);
    let host = &run.report()[0];
    assert_eq!(host["role"], "host");
    assert_eq!(host["current"], true);
    assert_eq!(host["names"], serde_json::json!(["host-a", "127.0.0.1"]));
    let run = vmferry(["keys", "show", &file]);
    assert!(run.stdout.contains("host-a, 127.0.0.1") && run.stdout.contains("vmferry authority"));
    let run = vmferry(["keys", "show", &path(&dir, "keys/host-a.key")]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("no certificate in it"), "{run:?}");
}

#[test]
fn what_is_there_stays_unless_a_host_is_renewed() {
    let dir = made();
    let (ca, keys) = (path(&dir, "ca"), path(&dir, "keys"));
    let run = vmferry(["keys", "authority", "--dir", &ca]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("there already"), "{run:?}");
    let host = ["keys", "host", "host-a", "--authority", &ca, "--out", &keys];
    let before = secret(&path(&dir, "keys/host-a.key"));
    assert_eq!(vmferry(host).code, Some(1));
    assert_eq!(secret(&path(&dir, "keys/host-a.key")), before);
    assert_eq!(vmferry([&host[..], &["--replace"]].concat()).code, Some(0));
    assert_ne!(secret(&path(&dir, "keys/host-a.key")), before);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let dir = made();
    let (ca, keys) = (path(&dir, "ca"), path(&dir, "keys"));
    let run = |name: &str, code| {
        let run = vmferry(["keys", "host", name, "--authority", &ca, "--out", &keys]);
        assert_eq!(run.code, Some(code), "{run:?}");
        run.stderr
    };
    assert!(run("../x", 2).contains("lower-case"));
    assert!(run("admin-x", 1).contains("for users"));
    let nowhere = path(&dir, "nowhere");
    let run = vmferry(["keys", "host", "b", "--authority", &nowhere, "--out", &keys]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("nowhere/ca.key"), "{run:?}");
}

fn config(dir: &TempDir, text: &str) -> String {
    let file = path(dir, "host.toml");
    std::fs::write(Path::new(&file), text).unwrap();
    file
}

const SOUND: &str = "\
host.name = 'host-a'
[api]
listen = '127.0.0.1:7443'
tls = { ca = 'keys/ca.pem', cert = 'keys/host-a.pem', key = 'keys/host-a.key' }
";

#[test]
fn a_sound_configuration_is_ok_and_shown_with_its_defaults() {
    let dir = made();
    let file = config(&dir, SOUND);
    let run = vmferry(["config", "check", "--config", &file]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "ok\n"));
    let run = vmferry(["config", "check", "--json", "--config", &file]);
    assert_eq!(run.report()["ok"], true);
    let run = vmferry(["config", "show", "--config", &file]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("[limits]\noutgoing = 4\n"), "{run:?}");
    let line = secret(&path(&dir, "keys/host-a.key"));
    assert!(!run.stdout.contains(line.lines().nth(1).unwrap()));
    // What is shown is a configuration, and the same.
    let shown = config(&dir, &run.stdout);
    let again = vmferry(["config", "show", "--config", &shown]);
    assert_eq!(again.stdout, run.stdout);
    let run = vmferry(["config", "show", "--json", "--config", &file]);
    assert_eq!(run.report()["api"]["listen"], "127.0.0.1:7443");
}

#[test]
fn all_problems_are_printed_and_the_exit_code_says_so() {
    let dir = made();
    let file = config(&dir, &format!("{SOUND}lissen = 1\n[limits]\nvms = 0\n"));
    let run = vmferry(["config", "check", "--config", &file]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""));
    let places: Vec<_> = run
        .stdout
        .lines()
        .filter(|l| l.contains("host.toml:"))
        .collect();
    assert_eq!(places.len(), 2, "{run:?}");
    assert!(places[0].contains(":5:1: api.lissen: ") && places[0].contains("api.listen?"));
    assert!(places[1].contains(":7:7: limits.vms: "), "{run:?}");
    let run = vmferry(["config", "check", "--json", "--config", &file]);
    assert_eq!(run.code, Some(1));
    let problems = run.report();
    assert_eq!(problems["ok"], false);
    assert_eq!(problems["problems"][1]["key"], "limits.vms");
    assert_eq!(problems["problems"][1]["at"]["line"], 7);
    let run = vmferry(["config", "show", "--config", &file]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("limits.vms"), "{run:?}");
}
