//! Wires disks to KVM: notifications come and interrupts go without a way through a vCPU thread.

use kvm_ioctls::{IoEventAddress, VmFd};

use super::error::kvm_error;
use crate::MachineError;
use crate::devices::virtio::Disks;

/// Offset of the register that a driver writes a queue's number to.
const QUEUE_NOTIFY: u64 = 0x50;

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
mod tests {
    use std::sync::Arc;

    use vmferry_block::{BlockBackend, DiskSource, MemoryDisk, Role};
    use vmferry_memory::GuestRam;

    use super::*;
    use crate::{Boot, Console, MachineConfig, MachineKind, OpenDisk};

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
