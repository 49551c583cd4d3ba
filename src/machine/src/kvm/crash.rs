//! Describes a vCPU that cannot go on, for people.

use std::fmt::Write;

use kvm_ioctls::VcpuFd;

/// What KVM could not do, and what it told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InternalError {
    /// Kind, as in `KVM_INTERNAL_ERROR_*`.
    pub(super) suberror: u32,
    /// Bytes of the instruction at RIP, where KVM has them.
    pub(super) instruction: Vec<u8>,
    /// Anything else.
    pub(super) data: Vec<u64>,
}

impl InternalError {
    /// Reads it from the vCPU's shared page, after an exit with `KVM_EXIT_INTERNAL_ERROR`.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        use kvm_bindings::{
            KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
        };
        let run = vcpu.get_kvm_run();
        // SAFETY: any bytes are a value of these integers, and the exit reason says that KVM
        // wrote this member.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let n = (internal.ndata as usize).min(internal.data.len());
        let mut error = Self {
            suberror: internal.suberror,
            instruction: Vec::new(),
            data: internal.data[..n].to_vec(),
        };
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION && n > 0 {
            // SAFETY: as above; this member overlays `internal`, its flags are the first datum.
            let (flags, bytes) = unsafe {
                let failure = run.__bindgen_anon_1.emulation_failure;
                (failure.flags, failure.__bindgen_anon_1.__bindgen_anon_1)
            };
            if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0 {
                let n = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
                error.instruction = bytes.insn_bytes[..n].to_vec();
            }
        }
        error
    }

    /// Whether KVM could not emulate an instruction.
    pub(super) fn is_emulation(&self) -> bool {
        self.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("KVM internal error {}", self.suberror);
        if self.instruction.is_empty() {
            let _ = write!(text, ", data {:x?}", self.data);
        } else {
            let _ = write!(text, ", instruction {:02x?}", self.instruction);
        }
        text
    }
}

/// `why` with the registers of vCPU `index`.
pub(super) fn describe(index: u32, why: &str, vcpu: &VcpuFd) -> String {
    let mut text = format!("vCPU {index}: {why}");
    if let Ok(r) = vcpu.get_regs() {
        let _ = write!(
            text,
            "\nrip={:016x} rsp={:016x} rflags={:08x} rax={:016x} rbx={:016x} rcx={:016x} \
             rdx={:016x}\nrsi={:016x} rdi={:016x} rbp={:016x} r8={:016x} r9={:016x} r10={:016x}\n\
             r11={:016x} r12={:016x} r13={:016x} r14={:016x} r15={:016x}",
            r.rip,
            r.rsp,
            r.rflags,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15
        );
    }
    if let Ok(s) = vcpu.get_sregs() {
        let _ = write!(
            text,
            "\ncs={:04x} base={:x} ss={:04x} cr0={:x} cr2={:x} cr3={:x} cr4={:x} efer={:x}",
            s.cs.selector, s.cs.base, s.ss.selector, s.cr0, s.cr2, s.cr3, s.cr4, s.efer
        );
    }
    text
}
