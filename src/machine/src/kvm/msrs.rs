//! Model-specific registers: which are saved, and how they are read and written in bulk.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::error::kvm_error;
use crate::MachineError;

/// The time stamp counter.
pub(super) const TSC: u32 = 0x10;
/// Deadline of the local APIC's timer. KVM takes it only once the APIC is in deadline mode.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// Memory types: the default, and MTRRs on.
pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
/// What [`MTRR_DEF_TYPE`] is on a PC that firmware has set up: on, write-back.
pub(super) const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Capabilities of nested virtualisation, which guests do not have.
const VMX: std::ops::RangeInclusive<u32> = 0x480..=0x491;
/// Registers with state that KVM's own list leaves out: MTRRs and machine check banks.
const MORE: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    MTRR_DEF_TYPE..=MTRR_DEF_TYPE,
    0x400..=0x47f,
];

/// One register's number and value.
pub(super) type Msr = (u32, u64);

/// The registers that are saved on this host, ascending: those that `vcpu` can read.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn readable(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, MachineError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(kvm_error("listing model-specific registers"))?;
    let mut all: Vec<u32> = list.as_slice().to_vec();
    all.extend(MORE.into_iter().flatten());
    all.retain(|index| !VMX.contains(index));
    all.sort_unstable();
    all.dedup();
    let found = read(vcpu, &all)?;
    Ok(found.into_iter().map(|(index, _)| index).collect())
}

fn entries(msrs: &[Msr]) -> Result<Msrs, kvm_ioctls::Error> {
    let entries: Vec<_> = msrs
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// Values of the registers `indices`, less those that cannot be read.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, MachineError> {
    let failed = kvm_error("reading model-specific registers");
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let asked: Vec<Msr> = chunk.iter().map(|&index| (index, 0)).collect();
        let mut msrs = entries(&asked).map_err(&failed)?;
        // KVM stops at the first one that it cannot read.
        let n = vcpu.get_msrs(&mut msrs).map_err(&failed)?.min(chunk.len());
        values.extend(msrs.as_slice()[..n].iter().map(|e| (e.index, e.data)));
        let unreadable = usize::from(n < chunk.len());
        rest = &rest[n + unreadable..];
    }
    Ok(values)
}

/// Sets registers. One that refuses the value that it has already is as well.
///
/// # Errors
/// In words, which register refused what.
pub(super) fn write(vcpu: &VcpuFd, msrs: &[Msr]) -> Result<(), String> {
    let failed = |e: kvm_ioctls::Error| format!("KVM refuses model-specific registers: {e}");
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let n = vcpu
            .set_msrs(&entries(chunk).map_err(failed)?)
            .map_err(failed)?;
        rest = &rest[n.min(chunk.len())..];
        if n < chunk.len() {
            let (index, value) = chunk[n];
            let now = read(vcpu, &[index]).unwrap_or_default();
            if now != [(index, value)] {
                return Err(format!(
                    "this host's KVM does not take {value:#x} for model-specific register \
                     {index:#x}"
                ));
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}
