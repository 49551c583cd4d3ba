//! The command line as a client: what it says where no service answers, and what shells and
//! readers of manuals get.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use common::BIN;
use common::demo::{ran, vmferry};

/// The binary with no host named by the environment.
fn client(words: &str) -> Command {
    let mut command = Command::new(BIN);
    command
        .args(words.split_whitespace())
        .env_remove("VMFERRY_HOST");
    for name in ["VMFERRY_CERT", "VMFERRY_KEY", "VMFERRY_CA"] {
        command.env_remove(name);
    }
    command
}

#[test]
fn without_a_service_one_line_says_so_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let words = format!("vm list --host unix:{}", socket.display());
    ran(&mut client(&words)).failed(&["cannot reach", "does not run here", "vmferry serve"]);
    // One that has died leaves its socket.
    drop(UnixListener::bind(&socket).unwrap());
    ran(&mut client(&words)).failed(&["does not run any more", "vmferry serve"]);
    let mut by_environment = client("host show");
    by_environment.env("VMFERRY_HOST", format!("unix:{}", socket.display()));
    ran(&mut by_environment).failed(&["api.sock", "does not run any more"]);
}

#[test]
fn https_needs_a_certificate() {
    let far = "--host https://127.0.0.1:1";
    ran(&mut client(&format!("vm list {far}"))).failed(&["--cert", "VMFERRY_CA"]);
    let files = "--cert /nowhere/c --key /nowhere/k --ca /nowhere/a";
    ran(&mut client(&format!("vm list {far} {files}"))).failed(&["/nowhere/"]);
    let dir = tempfile::tempdir().unwrap();
    let keys = vmferry_transports::keys::Authority::new()
        .unwrap()
        .issue("host-b")
        .unwrap()
        .write_to(dir.path())
        .unwrap();
    let (cert, key, ca) = (&keys.certificate, &keys.key, &keys.ca);
    let files = format!(
        "--cert {} --key {} --ca {}",
        cert.display(),
        key.display(),
        ca.display()
    );
    let run = ran(&mut client(&format!("vm list {far} {files}")));
    run.failed(&["cannot reach", "https://127.0.0.1:1", "refused"]);
}

/// A service that answers one request with this.
fn answers(listener: &UnixListener, status: &str, kind: &str, body: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    while !lines.next().unwrap().unwrap().is_empty() {}
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n");
    write!(stream, "{head}connection: close\r\n\r\n{body}").unwrap();
    request
}

#[test]
fn what_a_service_answers_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let service = std::thread::spawn(move || {
        let problem = r#"{"title":"Conflict","status":409,"detail":"web-1 moves: wait for it"}"#;
        [
            answers(&listener, "200 OK", "application/json", "[]"),
            answers(
                &listener,
                "409 Conflict",
                "application/problem+json",
                problem,
            ),
            answers(&listener, "200 OK", "text/html", "<html>"),
        ]
    });
    let host = format!("--host unix:{}", socket.display());
    let list = ran(&mut client(&format!("{host} vm list --json")));
    assert_eq!(
        (list.code, list.stdout.as_str()),
        (Some(0), "[]\n"),
        "{list:?}"
    );
    ran(&mut client(&format!("vm stop web-1 {host}"))).failed(&["web-1 moves: wait for it"]);
    ran(&mut client(&format!("host show {host}"))).failed(&["not understood"]);
    let requests = service.join().unwrap();
    let asked: Vec<_> = requests
        .iter()
        .map(|r| r.trim_end_matches(" HTTP/1.1"))
        .collect();
    assert_eq!(
        asked,
        ["GET /v1/vms", "POST /v1/vms/web-1/stop", "GET /v1/host"]
    );
}

#[test]
fn shells_get_completions_and_manuals_a_page_for_each_command() {
    for (shell, said) in [
        ("bash", "complete "),
        ("zsh", "#compdef vmferry"),
        ("fish", "complete -c"),
    ] {
        let run = vmferry(["completions", shell]);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
        assert!(
            run.stdout.contains(said) && run.stdout.contains("settle-storage"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let run = vmferry(["man", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    for page in [
        "vmferry",
        "vmferry-migrate",
        "vmferry-vm-create",
        "vmferry-host-drain",
    ] {
        let text = std::fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!dir.path().join("vmferry-vmm.1").exists());
    let page = vmferry(["man"]);
    assert!(page.stdout.contains("130"), "exit codes are in the manual");
    vmferry(["man", "--dir", "/nowhere/man"]).failed(&["No such file"]);
    let help = vmferry(["--help"]);
    assert!(help.stdout.contains("Exit codes:"), "{help:?}");
}
