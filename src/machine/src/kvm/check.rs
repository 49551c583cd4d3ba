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
                let lengths = [w.work.len(), w.disk.len(), w.commands.len()];
                if lengths != [n; 3] || w.unready as usize > n {
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

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_cpuid_entry2, kvm_irqchip};

    use super::*;
    use crate::config::{Console, MachineKind};
    use crate::devices::SavedSerial;
    use crate::kvm::state::{Board, Leaf, Shape};

    fn leaf(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ecx,
            ..Default::default()
        }
    }

    fn host() -> Host {
        Host {
            cpuid: vec![leaf(0, 1), leaf(1, 1 << 20 | 1 << 23)],
            msrs: vec![0x10, 0x174],
            xsave2_bytes: Some(4096),
            tsc_khz: 2_000_000,
            tsc_scaling: false,
        }
    }

    fn config() -> MachineConfig {
        MachineConfig {
            kind: MachineKind::Kvm,
            ram_bytes: 64 << 20,
            vcpus: 1,
            boot: Boot::Kernel {
                kernel: "vmlinux".into(),
                initrd: None,
                cmdline: String::new(),
            },
            serial: Console::None,
            debugcon: Console::None,
            dirty_rings: false,
            disks: Vec::new(),
        }
    }

    fn saved() -> Saved {
        Saved {
            shape: Shape {
                ram_bytes: 64 << 20,
                vcpus: 1,
                tsc_khz: 2_000_400,
                saved_at_ns: 0,
            },
            vcpus: vec![SavedVcpu {
                cpuid: host().cpuid.iter().map(Leaf::from).collect(),
                mp_state: 0,
                regs: Default::default(),
                sregs: Default::default(),
                xcrs: Default::default(),
                xsave: vec![0; 4096],
                debug: Default::default(),
                lapic: Default::default(),
                msrs: vec![(0x174, 5)],
                tsc: 7,
                events: Default::default(),
            }],
            board: Board {
                irqchips: [kvm_irqchip::default(); 3],
                pit: Default::default(),
                clock_ns: 9,
            },
            serial: SavedSerial {
                registers: [0; 9],
                input: vec![1],
            },
            workload: None,
            disks: Vec::new(),
        }
    }

    #[track_caller]
    fn refused(change: impl Fn(&mut Saved), words: &str) {
        let mut saved = saved();
        change(&mut saved);
        let why = saved.check(&config(), &host()).unwrap_err();
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn what_fits_is_taken_and_survives_its_encoding() {
        let saved = saved();
        assert_eq!(saved.check(&config(), &host()), Ok(()));
        let again = Saved::try_from(&saved.encode().unwrap()[..]).unwrap();
        assert_eq!(again.shape, saved.shape);
        assert_eq!(again.vcpus, saved.vcpus);
        assert_eq!(again.serial, saved.serial);
        assert_eq!(again.board.clock_ns, 9);
        assert_eq!(again.workload, None);
    }

    #[test]
    fn every_missing_feature_is_named() {
        let guest = [leaf(0, 1), leaf(1, 1 << 20 | 1 << 28 | 1 << 12)];
        refused(
            |s| s.vcpus[0].cpuid = guest.iter().map(Leaf::from).collect(),
            "vCPU 0: this host's processor or KVM lacks features that the guest has: avx, fma",
        );
        refused(
            |s| s.vcpus[0].cpuid = vec![Leaf::from(&leaf(0, 2))],
            "on a processor by",
        );
        refused(|s| s.vcpus[0].cpuid = Vec::new(), "a CPUID of 0 leaves");
        let wide = kvm_cpuid_entry2 {
            eax: 52,
            ..leaf(0x8000_0008, 0)
        };
        refused(
            |s| s.vcpus[0].cpuid.push(Leaf::from(&wide)),
            "have 52 bits, this host's 36",
        );
    }

    #[test]
    fn what_the_host_cannot_hold_is_refused() {
        refused(|s| s.vcpus.clear(), "it has 0 vCPUs");
        refused(|s| s.shape.vcpus = 2, "vCPUs");
        refused(|s| s.shape.ram_bytes = 0, "0 MiB of RAM");
        refused(|s| s.vcpus[0].xsave.truncate(400), "of 400 bytes");
        refused(|s| s.vcpus[0].xsave.push(0), "of 4097 bytes");
        refused(
            |s| s.vcpus[0].msrs = vec![(0x175, 1)],
            "register 0x175, which",
        );
        refused(
            |s| s.vcpus[0].msrs = vec![(0x174, 1); 3],
            "more model-specific registers",
        );
        let mut none_needed = saved();
        none_needed.vcpus[0].msrs = vec![(0x175, 0)];
        assert_eq!(none_needed.check(&config(), &host()), Ok(()));
    }

    #[test]
    fn a_time_stamp_counter_of_another_frequency_needs_scaling() {
        refused(|s| s.shape.tsc_khz = 0, "stands still");
        refused(|s| s.shape.tsc_khz = 2_000_501, "cannot scale it");
        let mut faster = saved();
        faster.shape.tsc_khz = 3_000_000;
        let scaling = Host {
            tsc_scaling: true,
            ..host()
        };
        assert_eq!(faster.check(&config(), &scaling), Ok(()));
        assert!(faster.needs_tsc_scaling(&scaling));
    }

    #[test]
    fn sections_that_are_unknown_twice_or_missing_are_refused() {
        let decode = |blob: &[u8]| Saved::try_from(blob).unwrap_err();
        let blob = saved().encode().unwrap();
        let mut later = blob.clone();
        later[4] = 2;
        assert!(decode(&later).contains("it has version 2, and this vmferry knows 1"));
        // Magic, version and count of sections take six bytes; then kind and version of the first.
        let mut unknown = blob.clone();
        unknown[6] = 99;
        assert!(decode(&unknown).contains("kind 99, version 1, is not known"));
        unknown[6] = 1;
        unknown[7] = 9;
        assert!(decode(&unknown).contains("kind 1, version 9, is not known"));
        let mut fewer = saved();
        fewer.vcpus = vec![fewer.vcpus[0].clone(); 9];
        assert!(decode(&fewer.encode().unwrap()).contains("too many vCPUs"));
        let mut many = blob[..5].to_vec();
        many.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(decode(&many).contains("cut off"));
        many.truncate(5);
        many.push(0);
        assert!(decode(&many).contains("it has no machine section"));
    }
}
