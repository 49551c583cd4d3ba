//! Wires disks to KVM: notifications come and interrupts go without a way through a vCPU thread.

use kvm_ioctls::{IoEventAddress, VmFd};

use super::error::kvm_error;
use crate::MachineError;
use crate::devices::virtio::{Disks, QUEUE_NOTIFY};

/// Has `vm` write a disk's eventfd where the guest notifies it of a queue, and interrupt the guest
/// where a disk writes another.
///
/// # Errors
/// [`MachineError::Kvm`].
pub(super) fn wire(vm: &VmFd, disks: &Disks) -> Result<(), MachineError> {
    for line in disks.lines() {
        let address = IoEventAddress::Mmio(line.address + QUEUE_NOTIFY);
        for queue in 0..line.queues {
            vm.register_ioevent(line.kick, &address, queue)
                .map_err(kvm_error("taking a disk's notifications (ioeventfd)"))?;
        }
        vm.register_irqfd(line.irq, line.gsi)
            .map_err(kvm_error("taking a disk's interrupts (irqfd)"))?;
    }
    Ok(())
}

/// `cmdline` with where a kernel of Linux finds the disks, as `virtio_mmio` reads it.
pub(super) fn command_line(cmdline: &str, disks: &Disks) -> String {
    let words = disks.lines().map(|line| {
        let (address, gsi) = (line.address, line.gsi);
        format!(" virtio_mmio.device=4K@{address:#x}:{gsi}")
    });
    cmdline.to_owned() + &words.collect::<String>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's helpers may panic")]
mod tests {
    use std::sync::Arc;

    use kvm_ioctls::{Kvm, VcpuFd};
    use vmferry_block::{BlockBackend, DiskSource, MemoryDisk, Role};
    use vmferry_memory::GuestRam;

    use super::*;
    use crate::devices::virtio::FIRST_GSI;
    use crate::devices::virtio::tests::{Host, until};
    use crate::{Boot, Console, MachineConfig, MachineKind, OpenDisk};

    const VECTOR: u8 = 0x41;
    /// Of the local APIC: spurious interrupts, and whether it is on; requested interrupts.
    const SVR: usize = 0xf0;
    const IRR: usize = 0x200;

    fn apic_word(vcpu: &VcpuFd, register: usize) -> u32 {
        let bytes = vcpu.get_lapic().unwrap().regs;
        let word: [_; 4] = std::array::from_fn(|i| bytes[register + i] as u8);
        u32::from_le_bytes(word)
    }

    /// A VM whose I/O APIC sends the first disk's line to its vCPU as [`VECTOR`].
    fn vm_that_listens() -> Option<(VmFd, VcpuFd)> {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIPPED (no /dev/kvm)");
            return None;
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut apic = vcpu.get_lapic().unwrap();
        (apic.regs[SVR], apic.regs[SVR + 1]) = (-1, 1);
        vcpu.set_lapic(&apic).unwrap();
        let mut chip = kvm_bindings::kvm_irqchip {
            chip_id: kvm_bindings::KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: KVM has filled this chip in; edge triggered, not masked, to APIC 0.
        unsafe { chip.chip.ioapic.redirtbl[FIRST_GSI as usize].bits = u64::from(VECTOR) };
        vm.set_irqchip(&chip).unwrap();
        Some((vm, vcpu))
    }

    #[test]
    fn kvm_an_answer_interrupts_the_vcpu() {
        let Some((vm, vcpu)) = vm_that_listens() else {
            return;
        };
        let disk = MemoryDisk::new(1 << 20);
        let mut host = Host::started(&disk);
        wire(&vm, &host.disks).unwrap();
        let requested = || {
            let word = apic_word(&vcpu, IRR + usize::from(VECTOR / 32) * 16);
            word >> (VECTOR % 32) & 1 == 1
        };
        assert!(!requested());
        host.driver.write_block(0, 3, 7);
        assert_eq!(host.driver.answer_to(0), (0, 1));
        until("the interrupt", requested);
    }

    #[test]
    fn linux_is_told_where_the_disks_are() {
        let config = MachineConfig {
            kind: MachineKind::Kvm,
            ram_bytes: 2 << 20,
            vcpus: 1,
            boot: Boot::Kernel {
                kernel: "vmlinux".into(),
                initrd: None,
                cmdline: String::new(),
            },
            serial: Console::None,
            debugcon: Console::None,
            dirty_rings: false,
            disks: vec![DiskSource::File("twin".into()).spec(); 2],
        };
        let ram = Arc::new(GuestRam::new(config.ram_bytes).unwrap());
        let opener: OpenDisk = Arc::new(|_, _| {
            Ok(Box::new(MemoryDisk::new(512).open().unwrap()) as Box<dyn BlockBackend>)
        });
        let disks = Disks::open(&config, &ram, Role::Owner, &opener).unwrap();
        assert_eq!(
            command_line("quiet", &disks),
            "quiet virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17"
        );
        let many = MachineConfig {
            disks: vec![DiskSource::File("twin".into()).spec(); 9],
            ..config
        };
        let refused = Disks::open(&many, &ram, Role::Owner, &opener).unwrap_err();
        assert_eq!(refused.to_string(), "9 disks: give at most 8");
    }
}
