//! A guest for trying a tracker out: one vCPU that writes a byte to each of many pages, in ring 3
//! of 64-bit mode, as some KVMs emulate anything more privileged and would tell other costs.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::Sweep;
use crate::kvm_ring::{DirtyRings, EXIT_RING_FULL, RingsEnabled};
use crate::{KvmSide, slots};

/// Frames of its page tables, three levels, and of its code. The group they are in is not written.
const TABLES: [u64; 3] = [1, 2, 3];
const CODE: u64 = 4;
/// Writes `al` to `rcx` places from `rdi`, `rsi` bytes apart, then to `rbx`, where there is no
/// RAM: that leaves the guest. And again.
const PROGRAM: [u8; 14] = [
    0x88, 0x07, // again: mov [rdi], al
    0x48, 0x01, 0xf7, // add rdi, rsi
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf6, // jnz again
    0x88, 0x03, // mov [rbx], al
    0xeb, 0xf2, // jmp again
];
/// Entries of page tables: present, writable, for ring 3, accessed; and a dirty page of 2 MiB.
const TABLE: u64 = 0x27;
const HUGE_PAGE: u64 = 0xe7;
const HUGE_BYTES: u64 = 2 << 20;
/// Mapped by the page tables, and no RAM.
const NO_RAM: u64 = (1 << 30) - HUGE_BYTES;
/// The bit that is always set.
const RFLAGS: u64 = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct TryGuest {
    vcpu: VcpuFd,
    kvm: KvmSide,
    /// Outlives the VM.
    _ram: Arc<GuestRam>,
}

impl TryGuest {
    /// A guest on `ram`, of less than 1 GiB; with `rings`, it has dirty rings of so many entries.
    pub(crate) fn new(ram: Arc<GuestRam>, rings: Option<u32>) -> io::Result<Self> {
        let kvm = Kvm::new()?;
        let vm = Arc::new(kvm.create_vm()?);
        let enabled = rings
            .map(|entries| RingsEnabled::enable(&vm, entries))
            .transpose()?;
        slots::give_ram(&vm, &ram)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        load(&ram).map_err(io::Error::other)?;
        enter_ring_3(&vcpu)?;
        let rings = enabled
            .map(|enabled| enabled.map(vm.clone(), ram.clone(), [&vcpu]))
            .transpose()?;
        Ok(Self {
            vcpu,
            kvm: KvmSide { vm, rings },
            _ram: ram,
        })
    }

    /// What trackers are made with.
    pub(crate) fn kvm(&self) -> KvmSide {
        self.kvm.clone()
    }

    /// Writes `value` to the pages of `sweep`.
    pub(crate) fn write(&mut self, sweep: Sweep, value: u8) -> io::Result<()> {
        let mut regs = self.vcpu.get_regs()?;
        regs.rax = value.into();
        regs.rbx = NO_RAM;
        regs.rcx = sweep.count;
        regs.rdi = sweep.first * PAGE_SIZE;
        regs.rsi = sweep.stride * PAGE_SIZE;
        self.vcpu.set_regs(&regs)?;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(NO_RAM, _)) => return Ok(()),
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => {
                    let rings: Option<&DirtyRings> = self.kvm.rings.as_deref();
                    rings.map_or(Ok(()), DirtyRings::make_room)?;
                }
                Ok(exit) => {
                    let why = format!("the guest for trying it out came back with {exit:?}");
                    return Err(io::Error::other(why));
                }
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn load(ram: &GuestRam) -> Result<(), vmferry_memory::MemoryError> {
    let [top, middle, bottom] = TABLES;
    let put = |frame, words: &mut dyn Iterator<Item = u64>| {
        let mut page: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        page.resize(PAGE_SIZE as usize, 0);
        ram.copy_in(PageRange::new(frame, 1), &page)
    };
    put(top, &mut [(middle * PAGE_SIZE) | TABLE].into_iter())?;
    put(middle, &mut [(bottom * PAGE_SIZE) | TABLE].into_iter())?;
    put(bottom, &mut (0..512).map(|i| (i * HUGE_BYTES) | HUGE_PAGE))?;
    let mut code = PROGRAM.to_vec();
    code.resize(PAGE_SIZE as usize, 0);
    ram.copy_in(PageRange::new(CODE, 1), &code)
}

fn enter_ring_3(vcpu: &VcpuFd) -> io::Result<()> {
    let data = kvm_segment {
        selector: 0x2b,
        limit: u32::MAX,
        g: 1,
        present: 1,
        s: 1,
        dpl: 3,
        db: 1,
        type_: 3,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: 0x33,
        db: 0,
        l: 1,
        type_: 11,
        ..data
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = data;
    }
    for segment in [&mut sregs.fs, &mut sregs.gs] {
        *segment = data;
    }
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = TABLES[0] * PAGE_SIZE;
    sregs.cr4 = 0x20;
    // SYSCALL, long mode and in it, no-execute.
    sregs.efer = 0xd01;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE * PAGE_SIZE;
    regs.rflags = RFLAGS;
    vcpu.set_regs(&regs)?;
    Ok(())
}
