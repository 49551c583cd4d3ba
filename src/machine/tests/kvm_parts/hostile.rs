//! Saved state that nobody saved: whatever the bytes are, there is an error in words or a machine.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use vmferry_machine::{Machine, MachineError, MachineState};

use crate::rig::{Rig, config, copy_ram, has_kvm};

/// Hostile states tried.
const ROUNDS: u32 = 500;
const CMDLINE: &str = "workload=dense ws-mib=1 fill-mib=1";

fn saved(vcpus: u32) -> (Rig, Vec<u8>) {
    let rig = Rig::boot(&config(CMDLINE, vcpus));
    rig.wait_ready();
    rig.machine.pause().unwrap();
    let blob = rig.machine.save().unwrap();
    (rig, blob)
}

/// Whether `machine`, which is new, takes it.
#[track_caller]
fn takes(machine: &dyn Machine, blob: &[u8]) -> bool {
    match machine.restore(blob) {
        Ok(()) => {
            assert_eq!(machine.state(), MachineState::Paused);
            true
        }
        Err(MachineError::State(why)) => {
            assert!(!why.is_empty() && !why.contains('\n'));
            assert_eq!(machine.state(), MachineState::Created);
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn kvm_state_that_is_cut_off_or_garbage_is_refused() {
    if !has_kvm() {
        return;
    }
    let (rig, blob) = saved(2);
    let other = Rig::create(rig.machine.config());
    for len in (0..blob.len()).step_by(7) {
        assert!(!takes(&*other.machine, &blob[..len]), "{len} bytes");
    }
    let longer = [&blob[..], &[0]].concat();
    assert!(!takes(&*other.machine, &longer));
    let mut rng = StdRng::seed_from_u64(1);
    for len in [0, 1, 4, 100, 10_000, 500_000, 40 << 20] {
        let mut garbage = vec![0; len];
        rng.fill_bytes(&mut garbage);
        assert!(!takes(&*other.machine, &garbage));
        if len >= 4 {
            garbage[..4].copy_from_slice(&blob[..4]);
            assert!(!takes(&*other.machine, &garbage));
        }
    }
    // It was the bytes that were bad, not the machine.
    copy_ram(&rig, &other);
    assert!(takes(&*other.machine, &blob));
    other.machine.resume().unwrap();
    other.verify();
}

#[test]
fn kvm_state_with_flipped_bits_harms_nobody() {
    if !has_kvm() {
        return;
    }
    let (rig, blob) = saved(2);
    let mut rng = StdRng::seed_from_u64(2);
    let mut other = Rig::create(rig.machine.config());
    let mut taken = 0;
    for round in 0..ROUNDS {
        let mut bad = blob.clone();
        for _ in 0..rng.random_range(1..4) {
            // Half of them where the structure is: lengths, kinds and the first registers.
            let end = if round % 2 == 0 { 400 } else { bad.len() };
            let bit = rng.random_range(0..end * 8);
            bad[bit / 8] ^= 1 << (bit % 8);
        }
        if takes(&*other.machine, &bad) {
            taken += 1;
            // It may crash, which is its own affair; stopping it must work.
            let _ = other.machine.resume();
            let _ = other.machine.pause();
            other = Rig::create(rig.machine.config());
        }
    }
    println!("{taken} of {ROUNDS} were taken");
    rig.machine.resume().unwrap();
    rig.verify();
}

#[test]
fn kvm_state_of_another_shape_is_refused() {
    if !has_kvm() {
        return;
    }
    let (rig, blob) = saved(1);
    let refused = |change: &dyn Fn(&mut vmferry_machine::MachineConfig), words: &str| {
        let mut config = rig.machine.config().clone();
        change(&mut config);
        let error = Rig::create(&config).machine.restore(&blob).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&|c| c.vcpus = 2, "it has 1 vCPUs, the machine 2");
    refused(
        &|c| c.ram_bytes = 128 << 20,
        "64 MiB of RAM, this one has 128",
    );
    refused(
        &|c| {
            c.boot = vmferry_machine::Boot::Kernel {
                kernel: "/no/matter".into(),
                initrd: None,
                cmdline: String::new(),
            };
        },
        "the built-in workload, the other a kernel",
    );
    let again = rig.machine.restore(&blob).unwrap_err();
    assert!(matches!(again, MachineError::Order { .. }));
}
