//! Machines leave nothing behind. In a process of its own: other tests' descriptors would count.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

#[path = "kvm_parts/rig.rs"]
#[allow(dead_code)]
mod rig;

use rig::{Rig, config, has_kvm};
use vmferry_machine::Console;

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn kvm_machines_leave_no_descriptors_threads_or_sockets() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("workload=dense ws-mib=1 fill-mib=1", 3);
    config.serial = Console::Socket(dir.path().join("serial"));
    config.debugcon = Console::File(dir.path().join("debug"));
    let cycle = |stop: bool| {
        let rig = Rig::boot(&config);
        rig.wait_ready();
        if stop {
            rig.machine.stop();
        }
    };
    cycle(true);
    let before = (entries("/proc/self/fd"), entries("/proc/self/task"));
    for round in 0..20 {
        cycle(round % 2 == 0);
    }
    let after = (entries("/proc/self/fd"), entries("/proc/self/task"));
    assert_eq!(before, after);
    assert_eq!(
        entries(dir.path().to_str().unwrap()),
        1,
        "only the log is left"
    );
}
