//! A guest on KVM in this process, to look at without a migration.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vmferry_machine::{
    Boot, Console, Machine, MachineConfig, MachineEvent, MachineKind, Role, create,
};

/// Boots a guest of one vCPU; the built-in workload has begun when this returns.
///
/// # Errors
/// In words, where this host cannot run it.
pub fn booted(boot: Boot, mem_mib: u64) -> Result<Arc<dyn Machine>, String> {
    let waits = matches!(boot, Boot::Workload { .. });
    let config = MachineConfig {
        kind: MachineKind::Kvm,
        ram_bytes: mem_mib << 20,
        vcpus: 1,
        boot,
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: Vec::new(),
    };
    let (send, events) = channel();
    let sink = Arc::new(move |event| drop(send.send(event)));
    let machine = create(&config, sink, Role::Owner).map_err(|e| e.to_string())?;
    machine.boot().map_err(|e| e.to_string())?;
    machine.resume().map_err(|e| e.to_string())?;
    if waits {
        events
            .iter()
            .find(|event| *event == MachineEvent::WorkloadReady)
            .ok_or("the workload did not begin")?;
    }
    Ok(machine)
}
