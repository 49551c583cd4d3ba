//! Reads the state of a paused machine out of KVM, and sets it in another.
//!
//! The order matters. Saving a vCPU: what it is doing (MP state) first, as reading it lets KVM
//! take in pending starts and resets, and its events last. Restoring: processor, system registers
//! (they hold the local APIC's base) before the local APIC, that before the interrupt controllers
//! that may have something for it, time stamp counters before deadlines, events last; KVM's clock
//! when all that is done.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, Xsave, kvm_clock_data, kvm_irqchip, kvm_mp_state, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::clock::{Moment, in_step, ticks};
use super::error::kvm_error;
use super::state::{Board, Leaf, Saved, SavedVcpu, Shape};
use super::vm::{self, Host};
use super::{Shared, msrs};
use crate::{MachineConfig, MachineError};

/// The state of `shared`'s vCPUs and devices, which stand still.
///
/// # Errors
/// [`MachineError::Kvm`]; [`MachineError::State`] where its disks are not held.
pub(super) fn save(shared: &Shared, config: &MachineConfig) -> Result<Saved, MachineError> {
    let host = &shared.host;
    let moment = Moment::now();
    // Not the host's, where it came here with another.
    let tsc_khz = match shared.vcpus.first() {
        Some(vcpu) => vcpu.fd().get_tsc_khz(),
        None => Ok(host.tsc_khz),
    }
    .map_err(kvm_error("reading the TSC's frequency"))?;
    let mut vcpus = Vec::new();
    for vcpu in &shared.vcpus {
        let cpuid = shared.cpuid_of(vcpu.index);
        vcpus.push(save_vcpu(
            &vcpu.fd(),
            host,
            cpuid.iter().map(Leaf::from).collect(),
        )?);
    }
    let mut counters = Vec::new();
    for vcpu in &shared.vcpus {
        let values = msrs::read(&vcpu.fd(), &[msrs::TSC])?;
        let tsc = values.first().map_or(0, |&(_, value)| value);
        counters.push(tsc.wrapping_sub(ticks(moment.age_ns(), tsc_khz)));
    }
    in_step(&mut counters, tsc_khz);
    for (vcpu, tsc) in vcpus.iter_mut().zip(counters) {
        vcpu.tsc = tsc;
    }
    Ok(Saved {
        shape: Shape {
            ram_bytes: config.ram_bytes,
            vcpus: config.vcpus,
            tsc_khz,
            saved_at_ns: moment.real_ns,
        },
        vcpus,
        board: save_board(&shared.vm, moment)?,
        serial: shared.devices.save_serial(),
        workload: shared.recorder.as_ref().map(|r| r.save()),
        disks: shared.devices.disks.save().map_err(MachineError::State)?,
    })
}

fn save_vcpu(vcpu: &VcpuFd, host: &Host, cpuid: Vec<Leaf>) -> Result<SavedVcpu, MachineError> {
    let mp_state = vcpu
        .get_mp_state()
        .map_err(kvm_error("reading what a vCPU does"))?
        .mp_state;
    let regs = vcpu
        .get_regs()
        .map_err(kvm_error("reading a vCPU's registers"))?;
    let sregs = vcpu
        .get_sregs()
        .map_err(kvm_error("reading a vCPU's system registers"))?;
    let xcrs = vcpu
        .get_xcrs()
        .map_err(kvm_error("reading a vCPU's extended control registers"))?;
    let xsave = save_xsave(vcpu, host)?;
    let debug = vcpu
        .get_debug_regs()
        .map_err(kvm_error("reading a vCPU's debug registers"))?;
    let lapic = vcpu
        .get_lapic()
        .map_err(kvm_error("reading a local APIC"))?;
    let mut values = msrs::read(vcpu, &host.msrs)?;
    values.retain(|&(index, _)| index != msrs::TSC);
    let events = vcpu
        .get_vcpu_events()
        .map_err(kvm_error("reading a vCPU's events"))?;
    Ok(SavedVcpu {
        cpuid,
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debug,
        lapic,
        msrs: values,
        tsc: 0,
        events,
    })
}

fn save_xsave(vcpu: &VcpuFd, host: &Host) -> Result<Vec<u8>, MachineError> {
    let failed = kvm_error("reading a vCPU's extended state");
    let Some(mut xsave) = xsave_buffer(host) else {
        let xsave = vcpu.get_xsave().map_err(failed)?;
        return Ok(xsave
            .region
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect());
    };
    // SAFETY: the buffer has the size that KVM named, and no features are enabled after that.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(failed)?;
    let words = xsave.as_fam_struct_ref().xsave.region;
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(xsave.as_slice().iter().flat_map(|w| w.to_le_bytes()));
    bytes.truncate(host.xsave_bytes());
    Ok(bytes)
}

/// A buffer for a vCPU's extended state, all zero; none where KVM knows only the oldest size.
fn xsave_buffer(host: &Host) -> Option<Xsave> {
    let more = host.xsave2_bytes?.saturating_sub(size_of::<kvm_xsave>());
    Xsave::new(more.div_ceil(4)).ok()
}

fn save_board(vm: &VmFd, moment: Moment) -> Result<Board, MachineError> {
    let mut irqchips: [kvm_irqchip; 3] = Default::default();
    for (id, chip) in (0..).zip(&mut irqchips) {
        chip.chip_id = id;
        vm.get_irqchip(chip)
            .map_err(kvm_error("reading an interrupt controller"))?;
    }
    let mut pit = vm
        .get_pit2()
        .map_err(kvm_error("reading the interval timer"))?;
    for channel in &mut pit.channels {
        channel.count_load_time =
            (moment.monotonic_ns as i64).wrapping_sub(channel.count_load_time);
    }
    let clock = vm.get_clock().map_err(kvm_error("reading KVM's clock"))?;
    Ok(Board {
        irqchips,
        pit,
        clock_ns: clock.clock.saturating_sub(moment.age_ns()),
    })
}

/// Sets `saved`, which was checked, in `shared`, whose vCPUs have never run.
///
/// # Errors
/// In words, what KVM refuses.
pub(super) fn restore(shared: &Shared, saved: &Saved) -> Result<(), String> {
    let moment = Moment::now();
    let gap_ns = moment.gap_ns(saved.shape.saved_at_ns);
    if let (Some(recorder), Some(state)) = (&shared.recorder, &saved.workload) {
        recorder.restore(state)?;
    }
    shared.devices.restore_serial(&saved.serial)?;
    shared.devices.disks.restore(&saved.disks)?;
    let scale = saved.needs_tsc_scaling(&shared.host);
    for (vcpu, state) in shared.vcpus.iter().zip(&saved.vcpus) {
        if scale {
            let set = vcpu.fd().set_tsc_khz(saved.shape.tsc_khz);
            set.map_err(refused("the time stamp counter's frequency"))?;
        }
        restore_vcpu(&vcpu.fd(), &shared.host, state)
            .map_err(|why| format!("vCPU {}: {why}", vcpu.index))?;
    }
    restore_board(&shared.vm, &saved.board, moment, gap_ns)?;
    for (vcpu, state) in shared.vcpus.iter().zip(&saved.vcpus) {
        let passed = ticks(gap_ns + moment.age_ns(), saved.shape.tsc_khz);
        let fd = vcpu.fd();
        msrs::write(&fd, &[(msrs::TSC, state.tsc.wrapping_add(passed))])?;
        // Some software KVMs take the value and leave the counter as it is.
        let now = msrs::read(&fd, &[msrs::TSC]).unwrap_or_default();
        if now.first().is_some_and(|&(_, now)| now < state.tsc) {
            return Err(format!(
                "vCPU {}: this host's KVM cannot set time stamp counters, and the guest's would \
                 go backward",
                vcpu.index
            ));
        }
    }
    for (vcpu, state) in shared.vcpus.iter().zip(&saved.vcpus) {
        restore_pending(&vcpu.fd(), state).map_err(|why| format!("vCPU {}: {why}", vcpu.index))?;
    }
    let clock = kvm_clock_data {
        clock: saved.board.clock_ns.wrapping_add(gap_ns + moment.age_ns()),
        ..Default::default()
    };
    shared
        .vm
        .set_clock(&clock)
        .map_err(refused("KVM's clock"))?;
    for vcpu in &shared.vcpus {
        // Spares a guest with KVM's clock a warning about a stuck processor; others refuse it.
        let _ = vcpu.fd().kvmclock_ctrl();
    }
    Ok(())
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |e| format!("KVM refuses {what}: {e}")
}

fn restore_vcpu(vcpu: &VcpuFd, host: &Host, state: &SavedVcpu) -> Result<(), String> {
    vm::set_cpuid(vcpu, &state.cpuid()).map_err(|_| "KVM refuses its CPUID".to_owned())?;
    vcpu.set_sregs(&state.sregs)
        .map_err(refused("system registers"))?;
    vcpu.set_regs(&state.regs).map_err(refused("registers"))?;
    vcpu.set_xcrs(&state.xcrs)
        .map_err(refused("extended control registers"))?;
    restore_xsave(vcpu, host, &state.xsave).map_err(refused("extended state"))?;
    vcpu.set_debug_regs(&state.debug)
        .map_err(refused("debug registers"))?;
    let values: Vec<_> = state
        .msrs
        .iter()
        .copied()
        .filter(|(index, _)| *index != msrs::TSC && *index != msrs::TSC_DEADLINE)
        .filter(|(index, _)| host.msrs.binary_search(index).is_ok())
        .collect();
    msrs::write(vcpu, &values)?;
    vcpu.set_lapic(&state.lapic)
        .map_err(refused("the local APIC"))
}

fn restore_xsave(vcpu: &VcpuFd, host: &Host, bytes: &[u8]) -> Result<(), kvm_ioctls::Error> {
    let mut words = bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let mut region = [0; 1024];
    for (to, word) in region.iter_mut().zip(&mut words) {
        *to = word;
    }
    let Some(mut xsave) = xsave_buffer(host) else {
        let xsave = kvm_xsave {
            region,
            ..Default::default()
        };
        // SAFETY: this KVM has no larger state than this.
        return unsafe { vcpu.set_xsave(&xsave) };
    };
    // SAFETY: the number of further words, which belongs to the allocation, is not changed.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = region;
    for (to, word) in xsave.as_mut_slice().iter_mut().zip(words) {
        *to = word;
    }
    // SAFETY: the buffer has the size that KVM named, and no features are enabled after that.
    unsafe { vcpu.set_xsave2(&xsave) }
}

fn restore_board(vm: &VmFd, board: &Board, moment: Moment, gap_ns: u64) -> Result<(), String> {
    for (id, chip) in (0..=KVM_IRQCHIP_IOAPIC).zip(&board.irqchips) {
        let chip = kvm_irqchip {
            chip_id: id,
            ..*chip
        };
        vm.set_irqchip(&chip)
            .map_err(refused("an interrupt controller"))?;
    }
    let mut pit = board.pit;
    for channel in &mut pit.channels {
        let age = channel.count_load_time.wrapping_add(gap_ns as i64);
        channel.count_load_time = (moment.monotonic_ns as i64).wrapping_sub(age);
    }
    vm.set_pit2(&pit).map_err(refused("the interval timer"))
}

/// What may come to pass as soon as it is set.
fn restore_pending(vcpu: &VcpuFd, state: &SavedVcpu) -> Result<(), String> {
    let deadline = state.msrs.iter().find(|(i, _)| *i == msrs::TSC_DEADLINE);
    if let Some(&deadline) = deadline {
        msrs::write(vcpu, &[deadline])?;
    }
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(refused("what it does"))?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(refused("events"))
}
