//! Sets vCPUs to what they find at their first instruction.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::error::kvm_error;
use super::msrs;
use crate::MachineError;
use crate::boot::START_INFO;

/// Protected mode, and the bit that is always set.
const CR0: u64 = 0x11;
/// The bit that is always set.
const RFLAGS: u64 = 2;
/// Offsets of the local APIC's registers for its two interrupt pins, and what they are on a PC:
/// the old interrupt controller's output, and NMI.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const EXT_INT: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// Has `vcpu` enter at `entry` as PVH says (xen/docs/misc/pvh.pandoc): 32-bit protected mode
/// without paging, flat segments, the start info in EBX; its own index in EDI, for payloads that
/// all vCPUs enter.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn pvh(vcpu: &VcpuFd, index: u32, entry: u32) -> Result<(), MachineError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(kvm_error("reading a vCPU's system registers"))?;
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 0xb,
        ..flat
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 3,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0, 0, 0);
    vcpu.set_sregs(&sregs)
        .map_err(kvm_error("setting a vCPU's system registers"))?;
    let regs = kvm_regs {
        rip: u64::from(entry),
        rbx: START_INFO,
        rdi: u64::from(index),
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(kvm_error("setting a vCPU's registers"))?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
    .map_err(kvm_error("making a vCPU runnable"))
}

/// What firmware does for a kernel on every processor: interrupt pins, and memory types on.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn firmware(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let mut lapic = vcpu
        .get_lapic()
        .map_err(kvm_error("reading a local APIC"))?;
    set_register(&mut lapic, LVT_LINT0, EXT_INT);
    set_register(&mut lapic, LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic)
        .map_err(kvm_error("setting a local APIC"))?;
    // Where KVM has no MTRRs, their default is as good.
    let _ = msrs::write(vcpu, &[(msrs::MTRR_DEF_TYPE, msrs::MTRR_WRITE_BACK)]);
    Ok(())
}

fn set_register(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (to, byte) in lapic.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}
