//! Migrations that are cancelled, in every phase before the handover: the guest goes on at the
//! source, nothing is left behind, and the next migration completes. Ctrl-C does it in the demo.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use common::demo::Ran;
use common::lab::{Host, Lab, Move};
use vmferry_engine::report::ReportOutcome;
use vmferry_machine::MachineKind;
use vmferry_vmm::api::Request;

on_each_machine!(
    at_once,
    in_the_first_pass,
    at_the_destination,
    in_a_later_pass,
    in_the_switchover,
    ctrl_c_cancels_the_demo,
    ctrl_c_before_the_move_ends_the_demo,
);

/// A guest at `a` that is about to move to `b` over a slow link; `cancel` cancels when it likes to.
async fn cancelled<F>(kind: MachineKind, transport: &str, max_blackout_ms: f64, cancel: F)
where
    F: AsyncFnOnce(&mut Host, &mut Host),
{
    let lab = Lab::new();
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(common::busy_guest(kind)).await;
    let (at_source, at_destination) = (a.used_with_ram().await, b.used().await);
    let mut slow = Move::new(&a, &b).over(transport).slow();
    slow.migrate.max_blackout_ms = max_blackout_ms;
    slow.begin(&mut a, &mut b).await;
    cancel(&mut a, &mut b).await;
    let reason = a.stays(ReportOutcome::Cancelled).await;
    assert!(reason.contains("cancelled"), "{reason}");
    b.stops_waiting().await;
    a.runs_unharmed().await;
    a.settles(at_source).await;
    b.settles(at_destination).await;
    let again = Move::new(&a, &b).over(transport);
    again.complete(&mut a, &mut b).await;
    b.runs_unharmed().await;
}

async fn cancel(host: &mut Host) {
    host.call(Request::Cancel).await.unwrap();
}

async fn at_once(kind: MachineKind) {
    for transport in ["quic", "tcp"] {
        cancelled(kind, transport, 300.0, async |a, _| cancel(a).await).await;
    }
}

async fn in_the_first_pass(kind: MachineKind) {
    for transport in ["quic", "tcp"] {
        cancelled(kind, transport, 300.0, async |a, _| {
            a.progress(|line| line.phase == "precopy" && line.pass == 1)
                .await;
            cancel(a).await;
        })
        .await;
    }
}

async fn at_the_destination(kind: MachineKind) {
    cancelled(kind, "quic", 300.0, async |a, b| {
        a.progress(|line| line.phase == "precopy").await;
        cancel(b).await;
    })
    .await;
}

async fn in_a_later_pass(kind: MachineKind) {
    // What is changed in a pass takes longer than the blackout allowed: passes follow on passes.
    cancelled(kind, "quic", 100.0, async |a, _| {
        a.progress(|line| line.phase == "precopy" && line.pass >= 3)
            .await;
        cancel(a).await;
    })
    .await;
}

async fn in_the_switchover(kind: MachineKind) {
    // The last pass lasts long enough to be met in it.
    cancelled(kind, "quic", 5000.0, async |a, _| {
        a.progress(|line| line.phase == "switchover").await;
        cancel(a).await;
    })
    .await;
}

/// Runs a demo, presses Ctrl-C when it has said `line`, and waits for its end.
fn interrupted(words: &str, line: &str) -> Ran {
    let mut child = Command::new(common::BIN)
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let (mut stderr, mut stdout) = (String::new(), String::new());
    while !stderr.contains(line) {
        let n = errors.read_line(&mut stderr).unwrap();
        assert_ne!(n, 0, "it never said {line:?}: {stderr}");
    }
    let pid = child.id().try_into().unwrap();
    // SAFETY: sends a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    errors.read_to_string(&mut stderr).unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_to_string(&mut stdout).unwrap();
    Ran {
        code: child.wait().unwrap().code(),
        stdout,
        stderr,
    }
}

async fn ctrl_c_cancels_the_demo(kind: MachineKind) {
    let ran = interrupted(
        &format!(
            "demo --json --machine {} --mem 64M --ws-mib 2 --fill-mib 8 --fill 0:0:100 \
             --link-mbit 20 --warm-up 50ms --run-for 50ms",
            kind.name()
        ),
        "hop 1 of 1",
    );
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let report = ran.report();
    assert_eq!(report["outcome"], "cancelled");
    assert_eq!(report["guest"]["verify"], "OK");
}

async fn ctrl_c_before_the_move_ends_the_demo(kind: MachineKind) {
    let (name, begun) = match kind {
        MachineKind::Kvm => ("kvm", "a KVM guest boots"),
        MachineKind::Process => ("process", "a process machine starts"),
    };
    let words = format!("demo --json --machine {name} --mem 64M --ws-mib 2 --warm-up 10m");
    interrupted(&words, begun).failed(&["interrupted"]);
}
