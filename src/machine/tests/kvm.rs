//! The KVM machine on a real KVM. Where there is none, every test says so and passes.

#[path = "kvm_parts/rig.rs"]
mod rig;

use rig::{Rig, config, has_kvm, transplant};
use vmferry_guest::abi::VERIFY_OK;
use vmferry_machine::{MachineEvent, MachineState};

const KINDS: [&str; 5] = ["idle", "dense", "sparse", "readmostly", "rewrite-same"];

fn cmdline(kind: &str) -> String {
    format!("workload={kind} ws-mib=8 fill-mib=16 seed=7")
}

#[test]
fn kvm_every_workload_boots_and_verifies() {
    if !has_kvm() {
        return;
    }
    for kind in KINDS {
        for vcpus in [1, 4] {
            let rig = Rig::boot(&config(&cmdline(kind), vcpus));
            rig.wait_ready();
            rig.verify();
            rig.machine.pause().unwrap();
            assert_eq!(rig.machine.state(), MachineState::Paused);
        }
    }
}

#[test]
fn kvm_state_and_ram_go_on_in_another_machine() {
    if !has_kvm() {
        return;
    }
    for vcpus in [1, 4] {
        for kind in ["dense", "sparse", "readmostly"] {
            let source = Rig::boot(&config(&cmdline(kind), vcpus));
            source.wait_ready();
            source.machine.pause().unwrap();
            let before = source.work();
            let blob = source.machine.save().unwrap();
            let destination = transplant(&source, &blob);
            destination.machine.resume().unwrap();
            destination.wait_beats_after(&before);
            destination.verify();
            // The source has lost nothing by it.
            source.machine.resume().unwrap();
            source.wait_beats_after(&before);
            source.verify();
        }
    }
}

/// Tells how long the calls take that a migration's blackout is made of; judges nothing.
#[test]
fn kvm_times_are_told() {
    if !has_kvm() {
        return;
    }
    for vcpus in [1, 4] {
        let mut times: [Vec<u128>; 4] = Default::default();
        for _ in 0..20 {
            let source = Rig::boot(&config(&cmdline("dense"), vcpus));
            source.wait_ready();
            let destination = Rig::create(source.machine.config());
            let mut at = std::time::Instant::now();
            let mut lap = |n: usize| {
                times[n].push(at.elapsed().as_micros());
                at = std::time::Instant::now();
            };
            source.machine.pause().unwrap();
            lap(0);
            let blob = source.machine.save().unwrap();
            lap(1);
            destination.machine.restore(&blob).unwrap();
            lap(2);
            destination.machine.resume().unwrap();
            lap(3);
            println!("{vcpus} vCPUs: state of {} bytes", blob.len());
        }
        for (name, mut times) in ["pause", "save", "restore", "resume"].into_iter().zip(times) {
            times.sort_unstable();
            println!("{vcpus} vCPUs: {name} {} µs (worst of 20: {})", times[10], times[19]);
        }
    }
}
#[test]
fn scratch() {
    use vmferry_protocol::PageRange;
    let a = Rig::boot(&config("workload=dense ws-mib=1 fill-mib=1 rate=1000", 2));
    a.wait_ready();
    std::thread::sleep(std::time::Duration::from_millis(500));
    a.machine.pause().unwrap();
    let host = unsafe { core::arch::x86_64::_rdtsc() };
    let mut page = vec![0; 4096];
    a.machine.ram().copy_out(PageRange::new(1024, 1), &mut page).unwrap();
    let q = |o: usize| u64::from_le_bytes(page[o..o + 8].try_into().unwrap());
    println!("host {host} beat {} {}", q(64), q(128+64));
    println!("{:?}", a.machine.cpu_features());
}
