//! Instructions that a KVM without hardware virtualisation cannot emulate in the guest's ring 0,
//! and that are easily done here. On other hosts nothing of this ever happens.

use kvm_bindings::{kvm_regs, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

const INT3: u8 = 0xcc;
const FWAIT: u8 = 0x9b;
const BREAKPOINT: u8 = 3;

/// Completes the instruction `bytes` that KVM could not emulate. False where that is not possible
/// either.
pub(super) fn complete(vcpu: &VcpuFd, bytes: &[u8]) -> bool {
    let done = match bytes.first() {
        Some(&INT3) => skip(vcpu).and_then(|()| inject_breakpoint(vcpu)),
        // Waits for an x87 exception, and there is none: KVM runs with the guest's x87 state.
        Some(&FWAIT) => skip(vcpu),
        _ => return false,
    };
    done.is_ok()
}

/// Goes on behind an instruction of one byte.
fn skip(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let regs = vcpu.get_regs()?;
    vcpu.set_regs(&kvm_regs {
        rip: regs.rip.wrapping_add(1),
        ..regs
    })
}

fn inject_breakpoint(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut events: kvm_vcpu_events = vcpu.get_vcpu_events()?;
    events.exception.injected = 1;
    events.exception.nr = BREAKPOINT;
    events.exception.has_error_code = 0;
    vcpu.set_vcpu_events(&events)
}
