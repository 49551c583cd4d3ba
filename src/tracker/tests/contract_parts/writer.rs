//! A vCPU that writes to guest RAM, for the contract suite.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmferry_memory::GuestRam;
use vmferry_protocol::PAGE_SIZE;
use vmferry_tracker::{EXIT_RING_FULL, KvmSide, RingsEnabled};

/// A guest that writes one byte to the page named by its data segment, then halts.
pub(crate) struct Writer {
    vcpu: VcpuFd,
    pub(crate) kvm: KvmSide,
}

impl Writer {
    /// With a dirty log.
    pub(crate) fn new(ram: &Arc<GuestRam>) -> Option<Self> {
        Self::make(ram, None)
    }

    /// With dirty rings of so many entries.
    pub(crate) fn with_rings(ram: &Arc<GuestRam>, entries: u32) -> Option<Self> {
        Self::make(ram, Some(entries))
    }

    fn make(ram: &Arc<GuestRam>, rings: Option<u32>) -> Option<Self> {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("SKIPPED (no /dev/kvm): writes by a vCPU");
            return None;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let enabled = match rings.map(|entries| RingsEnabled::enable(&vm, entries)) {
            Some(Err(error)) => {
                eprintln!("SKIPPED (this KVM has no dirty rings: {error})");
                return None;
            }
            other => other.map(Result::unwrap),
        };
        for (slot, region) in ram.regions().iter().enumerate() {
            let arg = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.range.gpa(),
                memory_size: region.range.bytes(),
                userspace_addr: region.hva as u64,
            };
            // SAFETY: the region is mapped, and `ram` outlives the VM in every test here.
            unsafe { vm.set_user_memory_region(arg) }.unwrap();
        }
        // mov [8], al; hlt
        let code = [0xa2, 0x08, 0x00, 0xf4];
        ram.guest_memory()
            .write_slice(&code, GuestAddress(0))
            .unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let rings = enabled.map(|e| e.map(vm.clone(), ram.clone(), [&vcpu]).unwrap());
        Some(Self {
            vcpu,
            kvm: KvmSide { vm, rings },
        })
    }

    pub(crate) fn write(&mut self, page: u64, value: u8) {
        let mut sregs = self.vcpu.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        sregs.ds.base = page * PAGE_SIZE;
        sregs.ds.selector = (page << 8) as u16;
        self.vcpu.set_sregs(&sregs).unwrap();
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.rip = 0;
        regs.rflags = 2;
        regs.rax = u64::from(value);
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::Hlt => break,
                VcpuExit::Unsupported(EXIT_RING_FULL) => {
                    self.kvm.rings.as_ref().unwrap().make_room().unwrap();
                }
                other => panic!("unexpected exit {other:?}"),
            }
        }
    }
}
