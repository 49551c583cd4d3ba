//! Names of the processor features that CPUID tells of.
//!
//! The names are those that Linux and QEMU use, where they have one. A bit without a name is
//! named by its place.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of CPUID, as an index into [`words`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// 32 feature bits.
struct Word {
    leaf: u32,
    index: u32,
    register: Register,
    /// Bits that say nothing of the processor: they follow the guest's own settings or the
    /// number of its vCPUs, or are not features.
    ignored: u32,
    /// Names by bit, from bit 0, separated by spaces; `-` where there is none.
    names: &'static str,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// OSXSAVE and the hypervisor bit.
const LEAF1_ECX_IGNORED: u32 = 1 << 27 | 1 << 31;
/// Hyper-threading: several logical processors in a package.
const LEAF1_EDX_IGNORED: u32 = 1 << 28;
/// OSPKE.
const LEAF7_ECX_IGNORED: u32 = 1 << 4;
/// FDP_EXCPTN_ONLY and ZERO_FCS_FDS tell that something is *not* there.
const LEAF7_EBX_IGNORED: u32 = 1 << 6 | 1 << 13;
/// MAWAU.
const LEAF7_ECX_FIELD: u32 = 0x1f << 17;

#[rustfmt::skip]
const WORDS: &[Word] = &[
    Word { leaf: 1, index: 0, register: Ecx, ignored: LEAF1_ECX_IGNORED, names:
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca \
         sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand" },
    Word { leaf: 1, index: 0, register: Edx, ignored: LEAF1_EDX_IGNORED, names:
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx \
         fxsr sse sse2 ss ht tm ia64 pbe" },
    Word { leaf: 7, index: 0, register: Ebx, ignored: LEAF7_EBX_IGNORED, names:
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f \
         avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er avx512cd \
         sha_ni avx512bw avx512vl" },
    Word { leaf: 7, index: 0, register: Ecx, ignored: LEAF7_ECX_IGNORED | LEAF7_ECX_FIELD, names:
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid keylocker bus_lock_detect cldemote - \
         movdiri movdir64b enqcmd sgx_lc pks" },
    Word { leaf: 7, index: 0, register: Edx, ignored: 0, names:
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
         rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
         avx512_fp16 amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities core_capabilities ssbd" },
    Word { leaf: 7, index: 1, register: Eax, ignored: 0, names:
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - \
         fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist - - invd_disable_post_bios \
         movrs" },
    Word { leaf: 7, index: 1, register: Ebx, ignored: 0, names: "ppin" },
    Word { leaf: 7, index: 1, register: Ecx, ignored: 0, names: "" },
    Word { leaf: 7, index: 1, register: Edx, ignored: 0, names:
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr prefetchiti - - \
         uiret_uif cet_sss avx10 - apx_f" },
    Word { leaf: 7, index: 2, register: Edx, ignored: 0, names:
        "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no uc_lock_disable" },
    Word { leaf: 0xd, index: 0, register: Eax, ignored: 0, names:
        "xstate_x87 xstate_sse xstate_avx xstate_bndregs xstate_bndcsr xstate_opmask xstate_zmm_hi256 \
         xstate_hi16_zmm - xstate_pkru - - - - - - - xstate_tilecfg xstate_tiledata" },
    Word { leaf: 0xd, index: 1, register: Eax, ignored: 0, names: "xsaveopt xsavec xgetbv1 xsaves xfd" },
    Word { leaf: 0x4000_0001, index: 0, register: Eax, ignored: 0, names:
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control \
         kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range \
         kvm_migration_control - - - - - - kvmclock_stable" },
    Word { leaf: 0x8000_0001, index: 0, register: Ecx, ignored: 0, names:
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit \
         wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc \
         mwaitx" },
    // The bits that repeat those of leaf 1 are left out: Intel and AMD differ in them.
    Word { leaf: 0x8000_0001, index: 0, register: Edx, ignored: 0x0183_f7ff, names:
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm \
         3dnowext 3dnow" },
    Word { leaf: 0x8000_0007, index: 0, register: Edx, ignored: 0, names:
        "- - - - - - - - constant_tsc" },
    Word { leaf: 0x8000_0008, index: 0, register: Ebx, ignored: 0, names:
        "clzero irperf xsaveerptr - rdpru - - - mcommit wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp ibrs_always \
         stibp_always ibrs_preferred ibrs_same_mode efer_lmsle_unsup - - - amd_ssbd virt_ssbd amd_ssb_no \
         cppc amd_psfd btc_no ibpb_ret" },
    Word { leaf: 0x8000_0021, index: 0, register: Eax, ignored: 0, names:
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr" },
];

fn value(cpuid: &[kvm_cpuid_entry2], word: &Word) -> u32 {
    cpuid
        .iter()
        .find(|e| e.function == word.leaf && e.index == word.index)
        .map_or(0, |e| word.register.of(e))
        & !word.ignored
}

fn names(word: &Word, bits: u32, into: &mut Vec<String>) {
    for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
        let name = word.names.split_ascii_whitespace().nth(bit);
        into.push(match name {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!(
                "cpuid-{:x}.{}-{}-bit{bit}",
                word.leaf,
                word.index,
                word.register.name()
            ),
        });
    }
}

/// Names of the features in `cpuid`, sorted.
pub(super) fn present(cpuid: &[kvm_cpuid_entry2]) -> Vec<String> {
    missing(cpuid, &[])
}

/// Names of the features in `wanted` that `there` has not, sorted.
pub(super) fn missing(wanted: &[kvm_cpuid_entry2], there: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut found = Vec::new();
    for word in WORDS {
        names(word, value(wanted, word) & !value(there, word), &mut found);
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf1(ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function: 1,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn features_are_named_sorted_and_compared() {
        let guest = [leaf1(1 << 28 | 1 << 23 | 1 << 16 | 1 << 27, 1)];
        assert_eq!(
            present(&guest),
            ["avx", "cpuid-1.0-ecx-bit16", "fpu", "popcnt"]
        );
        assert_eq!(missing(&guest, &[leaf1(1 << 23 | 1 << 16, 1)]), ["avx"]);
    }

    #[test]
    fn names_have_their_places_and_none_comes_twice() {
        let mut all = Vec::new();
        for word in WORDS {
            let n = word.names.split_ascii_whitespace().count();
            assert!(n <= 32, "{:#x} has {n} names", word.leaf);
            all.extend(word.names.split_ascii_whitespace().filter(|n| *n != "-"));
        }
        let bit = |leaf, register, name| {
            let word = WORDS
                .iter()
                .find(|w| w.leaf == leaf && w.index == 0 && w.register == register);
            word.unwrap()
                .names
                .split_ascii_whitespace()
                .position(|n| n == name)
        };
        // Spot checks near the end of each word, where a slip before would show.
        assert_eq!(bit(1, Ecx, "rdrand"), Some(30));
        assert_eq!(bit(1, Edx, "pbe"), Some(31));
        assert_eq!(bit(7, Ebx, "avx512vl"), Some(31));
        assert_eq!(bit(7, Ecx, "pks"), Some(31));
        assert_eq!(bit(7, Ecx, "rdpid"), Some(22));
        assert_eq!(bit(7, Edx, "ssbd"), Some(31));
        assert_eq!(bit(7, Edx, "spec_ctrl"), Some(26));
        assert_eq!(bit(0x8000_0001, Ecx, "mwaitx"), Some(29));
        assert_eq!(bit(0x8000_0001, Edx, "lm"), Some(29));
        assert_eq!(bit(0x8000_0001, Edx, "pdpe1gb"), Some(26));
        assert_eq!(bit(0x8000_0008, Ebx, "amd_psfd"), Some(28));
        assert_eq!(bit(0x4000_0001, Eax, "kvmclock_stable"), Some(24));
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }
}
