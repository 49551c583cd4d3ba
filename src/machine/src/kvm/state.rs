//! Saved state as it travels: sections, each with a kind and a version, in postcard's encoding.
//!
//! Whoever sends it may be hostile: [`Saved::try_from`] takes any bytes, with memory bounded by
//! their length, which is bounded too. Whether they fit a machine is judged in `check`.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::msrs::Msr;
use crate::config::MAX_VCPUS;
use crate::devices::SavedSerial;
use crate::devices::virtio::SavedDisk;
use crate::workload::RecorderState;

/// Longest saved state, in bytes: several times what eight vCPUs need, and disks with all that they
/// have in flight. Decoded, nothing becomes more than some twenty times as large.
const MAX_BYTES: usize = 8 << 20;
const MAGIC: [u8; 4] = *b"vmfK";
/// Version of the sections' encoding.
const VERSION: u16 = 1;
/// Kind and version of each sort of section.
const MACHINE: (u16, u16) = (1, 1);
const VCPU: (u16, u16) = (2, 1);
const BOARD: (u16, u16) = (3, 1);
const SERIAL: (u16, u16) = (4, 1);
const WORKLOAD: (u16, u16) = (5, 2);
const DISKS: (u16, u16) = (6, 1);

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
    /// There is no section where there are none.
    pub(super) disks: Vec<SavedDisk>,
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
        if !self.disks.is_empty() {
            parts.push((DISKS, bytes(&self.disks)?));
        }
        let sections = parts
            .iter()
            .map(|&((kind, version), ref data)| Section {
                kind,
                version,
                data,
            })
            .collect();
        bytes(&Envelope {
            magic: MAGIC,
            version: VERSION,
            sections,
        })
    }
}

impl SavedVcpu {
    /// The processor that it runs on.
    pub(super) fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.cpuid.iter().map(kvm_cpuid_entry2::from).collect()
    }
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
        let mut disks = None;
        let mut vcpus = Vec::new();
        for Section {
            kind,
            version,
            data,
        } in envelope.sections
        {
            match (kind, version) {
                MACHINE => once(&mut shape, "machine", value("machine", data)?)?,
                VCPU if vcpus.len() < MAX_VCPUS as usize => vcpus.push(value("vCPU", data)?),
                VCPU => return Err("it has too many vCPUs".to_owned()),
                BOARD => once(&mut board, "board", value("board", data)?)?,
                SERIAL => once(&mut serial, "serial", value("serial", data)?)?,
                DISKS => once(&mut disks, "disks", value("disks", data)?)?,
                WORKLOAD => once(&mut workload, "workload", value("workload", data)?)?,
                _ => {
                    return Err(format!(
                        "a section of kind {kind}, version {version}, is not known: use the same \
                         version of vmferry on both hosts"
                    ));
                }
            }
        }
        let lacks = |kind: &str| format!("it has no {kind} section");
        Ok(Self {
            shape: shape.ok_or_else(|| lacks("machine"))?,
            vcpus,
            board: board.ok_or_else(|| lacks("board"))?,
            serial: serial.ok_or_else(|| lacks("serial"))?,
            workload,
            disks: disks.unwrap_or_default(),
        })
    }
}
