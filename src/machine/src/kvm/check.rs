//! Judges whether a saved state fits a machine and its host, before anything of it is applied. What
//! only KVM can judge (values of registers) it judges when it is given them.

use super::msrs::Msr;
use super::state::{Saved, SavedVcpu};
use super::vm::Host;
use super::{cpuid, features};
use crate::{Boot, MachineConfig};

/// Greatest difference of time stamp counters that software does not mind, in parts per million:
/// as much as NTP corrects.
const TSC_TOLERANCE_PPM: u64 = 250;
/// The smallest extended state: the legacy part and its header.
const MIN_XSAVE_BYTES: usize = 576;

impl Saved {
    /// Compares it with what a machine of `config` on `host` can have.
    ///
    /// # Errors
    /// In words, all missing processor features at once.
    pub(super) fn check(&self, config: &MachineConfig, host: &Host) -> Result<(), String> {
        let n = config.vcpus as usize;
        if self.shape.vcpus != config.vcpus || self.vcpus.len() != n {
            return Err(format!(
                "it has {} vCPUs, the machine {n}",
                self.vcpus.len()
            ));
        }
        if self.shape.ram_bytes != config.ram_bytes {
            return Err(format!(
                "it is of a machine with {} MiB of RAM, this one has {}",
                self.shape.ram_bytes >> 20,
                config.ram_bytes >> 20
            ));
        }
        match (&self.workload, &config.boot) {
            (Some(w), Boot::Workload { .. }) => {
                if w.work.len() != n || w.commands.len() != n || w.unready as usize > n {
                    return Err("the workload's records do not fit the vCPUs".to_owned());
                }
            }
            (None, Boot::Kernel { .. }) => {}
            _ => return Err("one runs the built-in workload, the other a kernel".to_owned()),
        }
        self.check_tsc(host)?;
        for (i, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.check(host).map_err(|why| format!("vCPU {i}: {why}"))?;
        }
        Ok(())
    }

    fn check_tsc(&self, host: &Host) -> Result<(), String> {
        let (theirs, ours) = (u64::from(self.shape.tsc_khz), u64::from(host.tsc_khz));
        if theirs == 0 {
            return Err("its time stamp counter stands still".to_owned());
        }
        if self.needs_tsc_scaling(host) && !host.tsc_scaling {
            return Err(format!(
                "its time stamp counter runs at {theirs} kHz, this host's at {ours} kHz, and this \
                 host's processor cannot scale it"
            ));
        }
        Ok(())
    }

    /// Whether vCPUs must be given another frequency than the host's.
    pub(super) fn needs_tsc_scaling(&self, host: &Host) -> bool {
        let (theirs, ours) = (u64::from(self.shape.tsc_khz), u64::from(host.tsc_khz));
        theirs.abs_diff(ours) * 1_000_000 > ours * TSC_TOLERANCE_PPM
    }
}

impl SavedVcpu {
    fn check(&self, host: &Host) -> Result<(), String> {
        let cpuid = self.cpuid();
        if !(1..=kvm_bindings::KVM_MAX_CPUID_ENTRIES).contains(&cpuid.len()) {
            return Err(format!("a CPUID of {} leaves", cpuid.len()));
        }
        let (theirs, ours) = (cpuid::vendor(&cpuid), cpuid::vendor(&host.cpuid));
        if theirs != ours {
            return Err(format!(
                "it runs on a processor by {theirs:?}, this host's is by {ours:?}"
            ));
        }
        let missing = features::missing(&cpuid, &host.cpuid);
        if !missing.is_empty() {
            return Err(format!(
                "this host's processor or KVM lacks features that the guest has: {}",
                missing.join(", ")
            ));
        }
        let (theirs, ours) = (
            cpuid::address_bits(&cpuid),
            cpuid::address_bits(&host.cpuid),
        );
        if theirs > ours {
            return Err(format!(
                "its physical addresses have {theirs} bits, this host's {ours}"
            ));
        }
        let max = host.xsave_bytes();
        let len = self.xsave.len();
        if !(MIN_XSAVE_BYTES..=max).contains(&len) || !len.is_multiple_of(4) {
            return Err(format!(
                "extended state of {len} bytes, where this host has {max}"
            ));
        }
        if self.msrs.len() > host.msrs.len() {
            return Err("more model-specific registers than this host has".to_owned());
        }
        // One that is zero there need not exist here.
        let unknown =
            |(index, value): &&Msr| *value != 0 && host.msrs.binary_search(index).is_err();
        if let Some((index, _)) = self.msrs.iter().find(unknown) {
            return Err(format!(
                "model-specific register {index:#x}, which this host's KVM does not have"
            ));
        }
        Ok(())
    }
}
