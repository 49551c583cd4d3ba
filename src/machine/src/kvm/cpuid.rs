//! The processor that a guest sees: what KVM supports, less what this crate cannot move, with the
//! topology of the machine.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::error::kvm_error;
use crate::MachineError;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF7_EBX_SGX: u32 = 1 << 2;
const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
const EXT1_ECX_SVM: u32 = 1 << 2;
/// Types of a level of topology in leaves 0xb and 0x1f.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// What a guest on this host may see. Without nested virtualisation (its state is not saved),
/// SGX (its memory cannot be moved) and the performance counters (they count this host's events).
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn of_host(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("reading the supported CPUID"))?;
    let mut entries = supported.as_slice().to_vec();
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for e in &mut entries {
        match (e.function, e.index) {
            (1, _) => {
                e.ecx = (e.ecx | LEAF1_ECX_HYPERVISOR) & !LEAF1_ECX_VMX;
                if deadline {
                    e.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            (7, 0) => {
                e.ebx &= !LEAF7_EBX_SGX;
                e.ecx &= !LEAF7_ECX_SGX_LC;
            }
            (0xa | 0x12, _) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            (0x8000_0001, _) => e.ecx &= !EXT1_ECX_SVM,
            _ => {}
        }
    }
    Ok(entries)
}

/// `host` as vCPU `index` of `vcpus` sees it: one package with a core for each vCPU, APIC ids
/// being indices.
pub(super) fn of_vcpu(host: &[kvm_cpuid_entry2], index: u32, vcpus: u32) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = host
        .iter()
        .filter(|e| !matches!(e.function, 0xb | 0x1f))
        .copied()
        .collect();
    for e in &mut entries {
        match e.function {
            1 => {
                e.ebx = e.ebx & 0xffff | vcpus << 16 | index << 24;
                e.edx = e.edx & !LEAF1_EDX_HTT | if vcpus > 1 { LEAF1_EDX_HTT } else { 0 };
            }
            // Caches: cores in the package, and no cache but the last level's shared.
            4 | 0x8000_001d if e.eax & 0x1f != 0 => {
                let level = e.eax >> 5 & 7;
                let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                let cores = if e.function == 4 { vcpus - 1 } else { 0 };
                e.eax = e.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            0x8000_0008 => e.ecx = e.ecx & !0xff | (vcpus - 1),
            0x8000_001e => {
                e.eax = index;
                e.ebx = index & 0xff;
                e.ecx = 0;
            }
            _ => {}
        }
    }
    let shift = vcpus.next_power_of_two().trailing_zeros();
    for leaf in [0xb, 0x1f] {
        if host.iter().all(|e| e.function != leaf) {
            continue;
        }
        let levels = [(0, 1, LEVEL_SMT), (shift, vcpus, LEVEL_CORE | 1), (0, 0, 2)];
        for (i, (eax, ebx, ecx)) in levels.into_iter().enumerate() {
            entries.push(kvm_cpuid_entry2 {
                function: leaf,
                index: i as u32,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx,
                edx: index,
                ..Default::default()
            });
        }
    }
    entries
}

/// The vendor that `cpuid` names, twelve letters.
pub(super) fn vendor(cpuid: &[kvm_cpuid_entry2]) -> String {
    let Some(e) = cpuid.iter().find(|e| e.function == 0) else {
        return String::new();
    };
    let letters = [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes).concat();
    String::from_utf8_lossy(&letters).into_owned()
}

/// Bits of a physical address.
pub(super) fn address_bits(cpuid: &[kvm_cpuid_entry2]) -> u32 {
    cpuid
        .iter()
        .find(|e| e.function == 0x8000_0008)
        .map_or(36, |e| e.eax & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_has_its_own_id_and_all_are_cores_of_one_package() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ebx: 0xdd00_0800,
            ..Default::default()
        };
        let entries = of_vcpu(&[leaf(1), leaf(0xb)], 2, 3);
        assert_eq!(entries[0].ebx, 0x0203_0800);
        assert_eq!(entries[0].edx, LEAF1_EDX_HTT);
        let levels: Vec<_> = entries[1..]
            .iter()
            .map(|e| (e.function, e.index, e.eax, e.ebx, e.edx))
            .collect();
        assert_eq!(
            levels,
            [(0xb, 0, 0, 1, 2), (0xb, 1, 2, 3, 2), (0xb, 2, 0, 0, 2)]
        );
    }
}
