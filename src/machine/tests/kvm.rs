//! The KVM machine on a real KVM. Where there is none, every test says so and passes.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

#[path = "kvm_parts/hostile.rs"]
mod hostile;
#[path = "kvm_parts/kernels.rs"]
mod kernels;
#[path = "kvm_parts/refused.rs"]
mod refused;
#[path = "kvm_parts/rig.rs"]
mod rig;

use std::fs;
use std::time::{Duration, Instant};

use kernels::kernel_config;
use rig::{Rig, config, copy_ram, has_kvm, page, transplant};
use vmferry_guest::abi;
use vmferry_machine::{Boot, Console, MachineError, MachineEvent, MachineState};
use vmferry_tracker::{RING_ENTRIES, TrackerError, TrackerKind};

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
fn kvm_a_disk_that_is_not_there_is_told_and_nothing_hangs() {
    if !has_kvm() {
        return;
    }
    for vcpus in [1, 2] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let line = format!("{} disk-depth=8 disk-mib=1", cmdline("dense"));
        let mut config = config(&line, vcpus);
        config.debugcon = Console::File(log.path().to_owned());
        let rig = Rig::boot(&config);
        rig.wait_ready();
        rig.machine.workload().unwrap().verify_settled();
        for _ in 0..vcpus {
            match rig.next() {
                MachineEvent::Verified { result, .. } => assert_eq!(result, abi::VERIFY_DISK),
                other => panic!("{other:?}"),
            }
        }
        let said = fs::read_to_string(log.path()).unwrap();
        let no_disk = "there is no disk (0xffffffff found)";
        assert!(said.contains(no_disk), "{said}");
        // Several speak at once, a byte at a time.
        assert!(vcpus > 1 || said.contains("VERIFY FAIL disk"), "{said}");
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
            assert_eq!(
                destination.machine.cpu_features(),
                source.machine.cpu_features()
            );
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

/// The workload notes the time stamp counter at every heartbeat in its RAM.
#[test]
fn kvm_time_stamp_counters_never_go_backward() {
    if !has_kvm() {
        return;
    }
    const BEAT: usize = 64;
    const STATE_BYTES: usize = 128;
    let noted = |rig: &Rig| -> Vec<u64> {
        let states = page(rig, abi::ARENA_GPA / 4096);
        (0..2)
            .map(|i| STATE_BYTES * i + BEAT)
            .map(|at| u64::from_le_bytes(states[at..at + 8].try_into().unwrap()))
            .collect()
    };
    let mut rig = Rig::boot(&config(&cmdline("sparse"), 2));
    rig.wait_ready();
    let mut last = vec![1; 2];
    for _ in 0..10 {
        let work = rig.work();
        rig.wait_beats_after(&work);
        rig.machine.pause().unwrap();
        let now = noted(&rig);
        assert!(
            last.iter().zip(&now).all(|(l, n)| l <= n),
            "{last:?} {now:?}"
        );
        last = now;
        let blob = rig.machine.save().unwrap();
        rig = transplant(&rig, &blob);
        rig.machine.resume().unwrap();
    }
    rig.verify();
}

#[test]
fn kvm_pause_and_resume_hold_however_often_and_whatever_the_guest_does() {
    if !has_kvm() {
        return;
    }
    let busy = Rig::boot(&config(&cmdline("dense"), 4));
    let asleep = Rig::boot(&config(&cmdline("idle"), 2));
    let dir = tempfile::tempdir().unwrap();
    let mut rigs = vec![busy, asleep];
    for (name, elf) in [("spin", kernels::spin()), ("halt", kernels::halt())] {
        let path = dir.path().join(name);
        fs::write(&path, elf).unwrap();
        rigs.push(Rig::boot(&kernel_config(path, 2)));
    }
    for _ in 0..200 {
        for rig in &rigs {
            rig.machine.pause().unwrap();
            rig.machine.pause().unwrap();
            assert_eq!(rig.machine.state(), MachineState::Paused);
            rig.machine.resume().unwrap();
            rig.machine.resume().unwrap();
        }
    }
    for rig in &rigs[..2] {
        rig.wait_ready();
        rig.verify();
    }
    // A halted processor is saved and restored as well.
    let halted = &rigs[3];
    halted.machine.pause().unwrap();
    let blob = halted.machine.save().unwrap();
    let other = transplant(halted, &blob);
    other.machine.resume().unwrap();
    other.machine.pause().unwrap();
    other.machine.stop();
    assert_eq!(other.machine.state(), MachineState::Stopped);
    other.machine.stop();
}

#[test]
fn kvm_a_triple_fault_is_told_with_registers_and_hangs_nothing() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    fs::write(&path, kernels::triple_fault()).unwrap();
    let rig = Rig::boot(&kernel_config(path, 4));
    let MachineEvent::Crashed { detail } = rig.next() else {
        panic!("it does not crash");
    };
    assert!(detail.starts_with("vCPU 0: triple fault\n"), "{detail}");
    for part in ["rip=000000000010000", "rsp=0000000012345678", " cr0=11 "] {
        assert!(detail.contains(part), "{part} is not in {detail}");
    }
    let machine = &rig.machine;
    assert_eq!(machine.state(), MachineState::Crashed(detail.clone()));
    for refused in [machine.pause(), machine.resume(), machine.save().map(drop)] {
        assert!(matches!(
            refused,
            Err(MachineError::Order {
                state: "crashed",
                ..
            })
        ));
    }
    machine.stop();
    assert_eq!(machine.state(), MachineState::Crashed(detail));
}

#[test]
fn kvm_devices_answer_and_a_reset_stops_the_machine() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    fs::write(path("kernel"), kernels::devices()).unwrap();
    fs::write(path("initrd"), "initrd").unwrap();
    let mut config = kernel_config(path("kernel"), 1);
    config.boot = Boot::Kernel {
        kernel: path("kernel"),
        initrd: Some(path("initrd")),
        cmdline: "console=ttyS0".to_owned(),
    };
    config.serial = Console::File(path("serial"));
    config.debugcon = Console::File(path("debug"));
    let rig = Rig::boot(&config);
    let detail = "reset by port 0xcf9".to_owned();
    assert_eq!(rig.next(), MachineEvent::Stopped { detail });
    assert_eq!(rig.machine.state(), MachineState::Stopped);
    assert!(matches!(
        rig.machine.resume(),
        Err(MachineError::Order { .. })
    ));
    assert_eq!(fs::read_to_string(path("serial")).unwrap(), "1111ci");
    assert_eq!(fs::read_to_string(path("debug")).unwrap(), "debug");
}

/// On KVM with hardware virtualisation, KVM is not even asked for help with these.
#[test]
fn kvm_breakpoints_reach_their_handler() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    fs::write(path("kernel"), kernels::breakpoint()).unwrap();
    let mut config = kernel_config(path("kernel"), 1);
    config.serial = Console::File(path("serial"));
    let rig = Rig::boot(&config);
    let detail = "reset by the keyboard controller".to_owned();
    assert_eq!(rig.next(), MachineEvent::Stopped { detail });
    assert_eq!(fs::read_to_string(path("serial")).unwrap(), "Bx");
}

#[test]
fn kvm_what_the_workload_says_goes_to_its_console() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&cmdline("dense"), 1);
    config.debugcon = Console::File(dir.path().join("debug"));
    config.serial = Console::Socket(dir.path().join("serial"));
    let rig = Rig::boot(&config);
    rig.wait_ready();
    rig.verify();
    assert!(dir.path().join("serial").exists());
    rig.machine.stop();
    assert!(!dir.path().join("serial").exists());
    let said = fs::read_to_string(dir.path().join("debug")).unwrap();
    assert_eq!(said, "VERIFY OK\n");
}

#[test]
fn kvm_every_tracker_can_be_had() {
    if !has_kvm() {
        return;
    }
    let rig = Rig::boot(&config(&cmdline("dense"), 1));
    rig.wait_ready();
    for kind in TrackerKind::ALL {
        let Ok(tracker) = rig.machine.tracker(kind) else {
            assert_ne!(kind, TrackerKind::KvmLog, "a KVM machine has KVM's log");
            continue;
        };
        tracker.start().unwrap();
        let mut pages = 0;
        tracker.harvest(&mut |run| pages += run.count).unwrap();
        assert!(pages >= 16 * 256, "all that was ever written");
        tracker.stop();
    }
    rig.verify();
}

/// The guest rewrites more pages than a ring has entries, and is well.
#[test]
fn kvm_a_machine_with_dirty_rings_runs_on_when_they_are_full() {
    if !has_kvm() {
        return;
    }
    let mut config = config("workload=dense ws-mib=300 fill-mib=300 seed=7", 1);
    config.ram_bytes = 320 << 20;
    config.dirty_rings = true;
    let rig = match Rig::try_create(&config) {
        Ok(rig) => rig,
        Err(MachineError::Config(why)) => return println!("SKIPPED ({why})"),
        Err(error) => panic!("{error}"),
    };
    rig.machine.boot().unwrap();
    rig.machine.resume().unwrap();
    rig.wait_ready();
    let log = rig.machine.tracker(TrackerKind::KvmLog);
    assert!(matches!(log, Err(TrackerError::HasRings)));
    let tracker = rig.machine.tracker(TrackerKind::KvmRing).unwrap();
    for _ in 0..2 {
        tracker.start().unwrap();
        // Nothing is protected, so that only the vCPU itself makes room in its ring.
        let (mut told, began) = (0, Instant::now());
        while told <= u64::from(RING_ENTRIES) {
            told += tracker.harvest(&mut |_| {}).unwrap().notifications;
            assert!(began.elapsed() < rig::LONG, "{told} notifications");
            std::thread::sleep(Duration::from_millis(1));
        }
        tracker.stop();
    }
    rig.verify();
    rig.machine.pause().unwrap();
    // A migration's destination has rings as well.
    let blob = rig.machine.save().unwrap();
    let other = transplant(&rig, &blob);
    other.machine.resume().unwrap();
    other.verify();
    other.machine.tracker(TrackerKind::KvmRing).unwrap();
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
            let began = Instant::now();
            source.machine.pause().unwrap();
            let paused = Instant::now();
            let blob = source.machine.save().unwrap();
            let saved = Instant::now();
            copy_ram(&source, &destination);
            let copied = Instant::now();
            destination.machine.restore(&blob).unwrap();
            let restored = Instant::now();
            destination.machine.resume().unwrap();
            let resumed = Instant::now();
            let laps = [
                paused - began,
                saved - paused,
                restored - copied,
                resumed - restored,
            ];
            for (times, lap) in times.iter_mut().zip(laps) {
                times.push(lap.as_micros());
            }
        }
        for (name, mut times) in ["pause", "save", "restore", "resume"]
            .into_iter()
            .zip(times)
        {
            times.sort_unstable();
            println!(
                "{vcpus} vCPUs: {name} {} µs (worst of 20: {})",
                times[10], times[19]
            );
        }
    }
}
