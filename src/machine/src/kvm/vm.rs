//! Makes the virtual machine in KVM, and finds out what this host can do.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_pit_config,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmferry_memory::GuestRam;
use vmferry_tracker::{DirtyRings, RING_ENTRIES, RingsEnabled};

use super::error::{kvm_error, no_kvm};
use super::{cpuid, msrs};
use crate::MachineError;

/// Four pages in the device hole that KVM on Intel's processors needs for real mode.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// What a machine can have on this host.
#[derive(Debug)]
pub(super) struct Host {
    /// The processor as a guest may see it, before the topology of a machine.
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    /// Model-specific registers that are saved, ascending.
    pub(super) msrs: Vec<u32>,
    /// Bytes of a vCPU's extended state; none where KVM knows only the oldest size.
    pub(super) xsave2_bytes: Option<usize>,
    /// Frequency of a vCPU's time stamp counter, in kHz.
    pub(super) tsc_khz: u32,
    /// Whether a vCPU can have another frequency.
    pub(super) tsc_scaling: bool,
}

impl Host {
    /// Bytes of a vCPU's extended state.
    pub(super) fn xsave_bytes(&self) -> usize {
        self.xsave2_bytes.unwrap_or(size_of::<kvm_xsave>())
    }
}

/// A virtual machine with RAM, interrupt controllers, timer and vCPUs, which have their CPUID.
pub(super) struct Vm {
    pub(super) fd: Arc<VmFd>,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) rings: Option<Arc<DirtyRings>>,
    pub(super) host: Host,
}

/// Makes it, with or without dirty rings; memory slot `i` is region `i` of `ram`, which must
/// outlive the VM and its vCPUs.
///
/// # Errors
/// [`MachineError::NoKvm`], [`MachineError::Kvm`]; [`MachineError::Config`] where this KVM has no
/// dirty rings.
pub(super) fn create(
    ram: &Arc<GuestRam>,
    vcpus: u32,
    dirty_rings: bool,
) -> Result<Vm, MachineError> {
    let kvm = Kvm::new().map_err(no_kvm)?;
    if kvm.get_api_version() != KVM_API_VERSION as i32 || !kvm.check_extension(Cap::ImmediateExit) {
        return Err(no_kvm(kvm_ioctls::Error::new(libc::ENOSYS)));
    }
    let vm = Arc::new(kvm.create_vm().map_err(kvm_error("making a VM"))?);
    let rings_enabled = match dirty_rings {
        true => Some(enable_rings(&vm)?),
        false => None,
    };
    for (slot, region) in ram.regions().iter().enumerate() {
        let arg = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.range.gpa(),
            memory_size: region.range.bytes(),
            userspace_addr: region.hva as u64,
        };
        // SAFETY: the region is mapped for as long as `ram` lives, which the caller sees to; no
        // Rust reference points into it.
        unsafe { vm.set_user_memory_region(arg) }.map_err(kvm_error("giving the VM its RAM"))?;
    }
    vm.set_identity_map_address(IDENTITY_MAP)
        .map_err(kvm_error("setting the identity map's address"))?;
    vm.set_tss_address(TSS)
        .map_err(kvm_error("setting the TSS's address"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("making interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit)
        .map_err(kvm_error("making the interval timer"))?;

    let host_cpuid = cpuid::of_host(&kvm)?;
    let fds = (0..vcpus)
        .map(|i| vm.create_vcpu(u64::from(i)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(kvm_error("making a vCPU"))?;
    for (index, fd) in (0..).zip(&fds) {
        set_cpuid(fd, &cpuid::of_vcpu(&host_cpuid, index, vcpus))?;
    }
    let xsave2 = vm.check_extension_int(Cap::Xsave2);
    let host = Host {
        cpuid: host_cpuid,
        msrs: msrs::readable(&kvm, &fds[0])?,
        xsave2_bytes: usize::try_from(xsave2).ok().filter(|&n| n > 0),
        tsc_khz: fds[0]
            .get_tsc_khz()
            .map_err(kvm_error("reading the TSC's frequency"))?,
        tsc_scaling: vm.check_extension(Cap::TscControl),
    };
    let rings = rings_enabled
        .map(|enabled| enabled.map(vm.clone(), ram.clone(), &fds))
        .transpose()
        .map_err(|source| MachineError::Kvm {
            what: "mapping the dirty rings",
            source,
        })?;
    Ok(Vm {
        fd: vm,
        vcpus: fds,
        rings,
        host,
    })
}

/// Before there is a vCPU.
fn enable_rings(vm: &VmFd) -> Result<RingsEnabled, MachineError> {
    RingsEnabled::enable(vm, RING_ENTRIES).map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => MachineError::Config(
            "this host's KVM has no dirty rings (Linux 5.11): use another tracker than kvm-ring"
                .to_owned(),
        ),
        _ => MachineError::Kvm {
            what: "enabling dirty rings",
            source,
        },
    })
}

/// Has `vcpu` be the processor that `entries` describe.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), MachineError> {
    let what = "setting a vCPU's CPUID";
    let cpuid = kvm_bindings::CpuId::from_entries(entries)
        .map_err(|_| kvm_error(what)(kvm_ioctls::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm_error(what))
}
