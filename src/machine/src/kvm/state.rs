//! Saved state as it travels: sections, each with a kind and a version, in postcard's encoding.
//!
//! Whoever sends it may be hostile: [`Saved::try_from`] takes any bytes, with memory bounded by
//! their length, which is bounded too, and [`Saved::check`] compares what they say with what the
//! machine and its host can have. Nothing is applied before. What only KVM can judge (values of
//! registers) it judges when it is given them.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::msrs::Msr;
use super::vm::Host;
use super::{cpuid, features};
use crate::devices::SavedSerial;
use crate::workload::RecorderState;
use crate::{Boot, MachineConfig};

/// Longest saved state, in bytes: several times what eight vCPUs need. Decoded, nothing becomes
/// more than ten times as large.
const MAX_BYTES: usize = 512 << 10;
const MAGIC: [u8; 4] = *b"vmfK";
/// Version of the sections' encoding.
const VERSION: u16 = 1;
/// Greatest difference of time stamp counters that software does not mind, in parts per million:
/// as much as NTP corrects.
const TSC_TOLERANCE_PPM: u64 = 250;
/// The smallest extended state: the legacy part and its header.
const MIN_XSAVE_BYTES: usize = 576;

const MACHINE: u16 = 1;
const VCPU: u16 = 2;
const BOARD: u16 = 3;
const SERIAL: u16 = 4;
const WORKLOAD: u16 = 5;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    magic: [u8; 4],
    version: u16,
    #[serde(borrow)]
    sections: Vec<Section<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Section<'a> {
    kind: u16,
    version: u16,
    data: &'a [u8],
}

/// What must be the same at both ends, and when it was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) ram_bytes: u64,
    pub(super) vcpus: u32,
    /// Frequency of the time stamp counters, in kHz.
    pub(super) tsc_khz: u32,
    /// Nanoseconds of CLOCK_REALTIME, the moment for which all clocks are given.
    pub(super) saved_at_ns: u64,
}

/// One leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaf {
    function: u32,
    index: u32,
    flags: u32,
    /// EAX, EBX, ECX, EDX.
    values: [u32; 4],
}

impl From<&kvm_cpuid_entry2> for Leaf {
    fn from(e: &kvm_cpuid_entry2) -> Self {
        Self {
            function: e.function,
            index: e.index,
            flags: e.flags,
            values: [e.eax, e.ebx, e.ecx, e.edx],
        }
    }
}

impl From<&Leaf> for kvm_cpuid_entry2 {
    fn from(leaf: &Leaf) -> Self {
        let [eax, ebx, ecx, edx] = leaf.values;
        Self {
            function: leaf.function,
            index: leaf.index,
            flags: leaf.flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedVcpu {
    pub(super) cpuid: Vec<Leaf>,
    pub(super) mp_state: u32,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) xcrs: kvm_xcrs,
    pub(super) xsave: Vec<u8>,
    pub(super) debug: kvm_debugregs,
    pub(super) lapic: kvm_lapic_state,
    /// All but the time stamp counter.
    pub(super) msrs: Vec<Msr>,
    /// The time stamp counter at [`Shape::saved_at_ns`].
    pub(super) tsc: u64,
    pub(super) events: kvm_vcpu_events,
}

/// What all vCPUs share.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Board {
    /// Both 8259s, the I/O APIC.
    pub(super) irqchips: [kvm_irqchip; 3],
    /// The interval timer, with the times at which its channels were loaded as ages in
    /// nanoseconds at [`Shape::saved_at_ns`].
    pub(super) pit: kvm_pit_state2,
    /// KVM's clock at [`Shape::saved_at_ns`], in nanoseconds.
    pub(super) clock_ns: u64,
}

/// The state of a machine.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) shape: Shape,
    pub(super) vcpus: Vec<SavedVcpu>,
    pub(super) board: Board,
    pub(super) serial: SavedSerial,
    pub(super) workload: Option<RecorderState>,
}

impl Saved {
    /// The bytes that travel.
    ///
    /// # Errors
    /// In words.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut parts = vec![(MACHINE, bytes(&self.shape)?)];
        for vcpu in &self.vcpus {
            parts.push((VCPU, bytes(vcpu)?));
        }
        parts.push((BOARD, bytes(&self.board)?));
        parts.push((SERIAL, bytes(&self.serial)?));
        if let Some(workload) = &self.workload {
            parts.push((WORKLOAD, bytes(workload)?));
        }
        let section = |(kind, data): &(u16, Vec<u8>)| -> (u16, u16, Vec<u8>) {
            (*kind, version_of(*kind), data.clone())
        };
        let sections: Vec<_> = parts.iter().map(section).collect();
        bytes(&(MAGIC, VERSION, sections))
    }

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
    /// The processor that it runs on.
    pub(super) fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.cpuid.iter().map(kvm_cpuid_entry2::from).collect()
    }

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
        let unknown = |(index, value): &&Msr| *value != 0 && host.msrs.binary_search(index).is_err();
        if let Some((index, _)) = self.msrs.iter().find(unknown) {
            return Err(format!(
                "model-specific register {index:#x}, which this host's KVM does not have"
            ));
        }
        Ok(())
    }
}

/// The one version of each kind of section that this crate writes and reads.
fn version_of(_kind: u16) -> u16 {
    1
}

fn bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(|e| format!("it cannot be written: {e}"))
}

/// Reads a section; only what [`bytes`] would write for the same value is taken.
fn value<T: Serialize + DeserializeOwned>(kind: &str, data: &[u8]) -> Result<T, String> {
    let garbled = || format!("its {kind} section is cut off or garbled");
    let value: T = postcard::from_bytes(data).map_err(|_| garbled())?;
    if bytes(&value)? != data {
        return Err(garbled());
    }
    Ok(value)
}

fn once<T>(slot: &mut Option<T>, kind: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("it has two {kind} sections")),
    }
}

impl TryFrom<&[u8]> for Saved {
    type Error = String;

    fn try_from(blob: &[u8]) -> Result<Self, String> {
        if blob.len() > MAX_BYTES {
            return Err(format!("{} bytes are too many", blob.len()));
        }
        if !blob.starts_with(&MAGIC) {
            return Err("it is not the state of a KVM machine".to_owned());
        }
        let envelope: Envelope<'_> = match postcard::take_from_bytes(blob) {
            Ok((envelope, [])) => envelope,
            _ => return Err("it is cut off or garbled".to_owned()),
        };
        if envelope.version != VERSION {
            return Err(format!(
                "it has version {}, and this vmferry knows {VERSION}: use the same version of \
                 vmferry on both hosts",
                envelope.version
            ));
        }
        let (mut shape, mut board, mut serial, mut workload) = (None, None, None, None);
        let mut vcpus = Vec::new();
        for Section {
            kind,
            version,
            data,
        } in envelope.sections
        {
            if !(MACHINE..=WORKLOAD).contains(&kind) || version != version_of(kind) {
                return Err(format!(
                    "a section of kind {kind}, version {version}, is not known: use the same \
                     version of vmferry on both hosts"
                ));
            }
            match kind {
                MACHINE => once(&mut shape, "machine", value("machine", data)?)?,
                VCPU if vcpus.len() < crate::config::MAX_VCPUS as usize => {
                    vcpus.push(value("vCPU", data)?);
                }
                VCPU => return Err("it has too many vCPUs".to_owned()),
                BOARD => once(&mut board, "board", value("board", data)?)?,
                SERIAL => once(&mut serial, "serial", value("serial", data)?)?,
                _ => once(&mut workload, "workload", value("workload", data)?)?,
            }
        }
        let lacks = |kind: &str| format!("it has no {kind} section");
        Ok(Self {
            shape: shape.ok_or_else(|| lacks("machine"))?,
            vcpus,
            board: board.ok_or_else(|| lacks("board"))?,
            serial: serial.ok_or_else(|| lacks("serial"))?,
            workload,
        })
    }
}
