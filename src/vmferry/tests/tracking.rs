//! Trackers in whole moves: each of them, groups of each size, writers that are slowed down, and a
//! user whom the kernel permits less.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::fs;

use common::demo::{demo, ran};
use common::nobody::{Nobody, is_root};
use serde_json::Value;
use vmferry_machine::MachineKind;

fn of(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {value:#}"))
}

/// A guest is moved with `tracker`, in three passes at least.
fn moved(kind: MachineKind, tracker: &str, more: &str) -> Option<Value> {
    if !common::can_run(kind) {
        return None;
    }
    let name = kind.name();
    let words = format!("--machine {name} --tracker {tracker} --min-passes 3 {more}");
    let report = demo(&words).completed();
    assert_eq!(report["tracker"], tracker, "{report:#}");
    Some(report)
}

#[test]
fn kvm_every_tracker_moves_a_guest_of_two_vcpus() {
    for tracker in ["kvm-log", "kvm-ring", "wp-async", "wp-group"] {
        moved(MachineKind::Kvm, tracker, "--workload dense --vcpus 2");
    }
}

#[test]
fn process_every_tracker_moves_a_guest_of_two_vcpus() {
    for tracker in ["wp-async", "wp-group"] {
        moved(MachineKind::Process, tracker, "--workload dense --vcpus 2");
    }
}

/// Pages are released a group at a time, and groups are as large as was said.
fn groups_are_as_large_as_was_said(kind: MachineKind) {
    for (size, pages) in [("4k", 1), ("64k", 16), ("2m", 512), ("32m", 8192)] {
        let more = format!("--workload dense --group {size}");
        let Some(report) = moved(kind, "wp-group", &more) else {
            return;
        };
        let costs = &report["notifications"];
        let (answered, released) = (of(costs, "answered"), of(costs, "pages_released"));
        assert!(answered > 0, "{size}: {report:#}");
        assert!(released <= answered * pages, "{size}: {costs:#}");
        // What was never touched is not protected, so groups may have gaps; but a page is a page.
        assert!(released > answered || pages == 1, "{size}: {costs:#}");
    }
}

#[test]
fn kvm_groups_are_as_large_as_was_said() {
    groups_are_as_large_as_was_said(MachineKind::Kvm);
}

#[test]
fn process_groups_are_as_large_as_was_said() {
    groups_are_as_large_as_was_said(MachineKind::Process);
}

/// Of pages that are written back as they were, next to nothing is sent again.
fn what_is_written_back_is_not_sent_again(kind: MachineKind) {
    let Some(report) = moved(kind, "wp-group", "--workload rewrite-same --codec raw") else {
        return;
    };
    let passes = report["passes"].as_array().unwrap();
    let sum = |name| passes[1..].iter().map(|pass| of(pass, name)).sum::<u64>();
    let (considered, sent) = (sum("pages_considered"), sum("pages_sent"));
    // The working set of 16 MiB in at least one pass, and what beside it tells the time.
    assert!(considered >= 4096, "{report:#}");
    assert!(sent * 10 <= considered, "{report:#}");
    assert!(sum("bytes_wire") * 10 <= considered * 4096, "{report:#}");
}

#[test]
fn kvm_what_is_written_back_is_not_sent_again() {
    what_is_written_back_is_not_sent_again(MachineKind::Kvm);
}

#[test]
fn process_what_is_written_back_is_not_sent_again() {
    what_is_written_back_is_not_sent_again(MachineKind::Process);
}

/// 64 MiB, rewritten much faster than 400 Mbit/s carry them.
const TOO_FAST: &str = "--workload dense --ws-mib 64 --rate 0 --link-mbit 400 --codec raw \
                        --tracker wp-group --max-blackout 400ms";

#[test]
fn kvm_a_writer_too_fast_for_its_link_gets_there_when_it_is_slowed_down() {
    if !common::can_run(MachineKind::Kvm) {
        return;
    }
    let report = demo(&format!("--machine kvm {TOO_FAST} --throttle on")).completed();
    let decisions = report["decisions"].as_array().unwrap();
    let slowed = decisions.iter().any(|d| d["decision"] == "throttle");
    assert!(slowed, "{report:#}");
    let last = decisions.last().unwrap();
    assert_eq!(last["decision"], "switch-over", "{report:#}");
    assert!(last["blackout_ms"].as_f64().unwrap() <= 400.0, "{last:#}");
    let waited = report["notifications"]["throttled_ms"].as_f64().unwrap();
    assert!(waited > 0.0, "{report:#}");
}

#[test]
fn kvm_a_writer_too_fast_for_its_link_stays_where_it_may_not_be_slowed_down() {
    if !common::can_run(MachineKind::Kvm) {
        return;
    }
    let ran = demo(&format!("--machine kvm {TOO_FAST} --throttle off"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = ran.stderr.lines().last().unwrap();
    assert!(said.contains("--throttle"), "{said}");
    let report = ran.report();
    assert_eq!(report["outcome"], "failed", "{report:#}");
    assert_eq!(report["notifications"]["throttled_ms"], 0.0, "{report:#}");
}

/// Root may do everything, so the binary is run by somebody else, from where he may read it.
#[test]
fn process_whoever_may_not_answer_write_faults_has_his_machines_moved_all_the_same() {
    if !is_root() {
        return println!("SKIPPED: only root can be somebody else");
    }
    let permitted = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if permitted.is_ok_and(|all| all.trim() != "0") {
        return println!("SKIPPED: everybody may answer write faults here");
    }
    let nobody = Nobody::new();
    for tracker in ["auto", "wp-group"] {
        let mut command = nobody.command();
        command
            .args(["demo", "--json", "--machine", "process", "--mem", "256M"])
            .args(["--run-for", "50ms", "--warm-up", "100ms"])
            .args(["--max-blackout", "20s", "--tracker", tracker]);
        let report = ran(&mut command).completed();
        assert_eq!(report["tracker"], "wp-async", "{report:#}");
        let why = report["tracker_choice"]["why"].as_str().unwrap();
        assert!(why.contains("/dev/userfaultfd"), "{why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
}
