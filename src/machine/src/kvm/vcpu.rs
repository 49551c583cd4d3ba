//! vCPU threads: KVM_RUN and what it comes back with.
//!
//! A thread holds its vCPU for as long as the gate lets it run; while it stands, others may read
//! and set the vCPU's registers. It stands only after KVM_RUN was interrupted, which is when an
//! access to a device that was answered before is completed in the vCPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmferry_tracker::EXIT_RING_FULL;

use super::crash::{self, InternalError};
use super::kick::Kick;
use super::{Shared, quirks};
use crate::devices::Effect;
use crate::gate::{Seat, precise_sleep};
use crate::{MachineError, lock};

/// vCPU threads need little, and sinks of events not much more.
const STACK_BYTES: usize = 256 << 10;
/// How long a halted vCPU stands that KVM does not wait for by itself.
const HALT: Duration = Duration::from_millis(1);

/// A vCPU, whoever uses it.
#[derive(Debug)]
pub(super) struct Vcpu {
    /// Which it is; also its APIC id.
    pub(super) index: u32,
    /// Declared before the vCPU, into whose memory it points.
    kick: Kick,
    fd: Mutex<VcpuFd>,
}

/// Why a vCPU came out of the guest.
enum Out {
    /// Called out.
    Interrupted,
    /// The guest ended the machine; how.
    Reset(String),
    /// The vCPU cannot go on; why, with registers.
    Crashed(String),
}

impl Vcpu {
    pub(super) fn new(index: u32, mut fd: VcpuFd) -> Self {
        Self {
            index,
            kick: Kick::of(&mut fd),
            fd: Mutex::new(fd),
        }
    }

    /// The vCPU itself. Waits for as long as its thread runs it.
    pub(super) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.fd)
    }

    /// Calls its thread out of the guest, so that it looks at the gate.
    pub(super) fn kick(&self) {
        self.kick.kick();
    }
}

/// Starts the thread of vCPU `index`. It stands until the gate lets it run.
///
/// # Errors
/// [`MachineError::Threads`].
pub(super) fn start(shared: &Arc<Shared>, index: u32) -> Result<JoinHandle<()>, MachineError> {
    let (seat, shared) = (shared.gate.seat(), Arc::clone(shared));
    let run = move || {
        precise_sleep();
        let vcpu = &shared.vcpus[index as usize];
        vcpu.kick.attach();
        let ran = catch_unwind(AssertUnwindSafe(|| work(&shared, vcpu, &seat)));
        if ran.is_err() {
            shared.crash(format!("vCPU {index}: its thread panicked"));
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|e| MachineError::Threads(format!("cannot start the thread of vCPU {index}: {e}")))
}

fn work(shared: &Shared, vcpu: &Vcpu, seat: &Seat) {
    loop {
        vcpu.kick.clear();
        if !seat.pass() {
            return;
        }
        let out = enter(shared, vcpu, seat);
        match out {
            Out::Interrupted => {}
            Out::Reset(how) => return shared.reset(how),
            Out::Crashed(why) => return shared.crash(why),
        }
    }
}

/// Runs the guest until it is interrupted or can run no more.
fn enter(shared: &Shared, vcpu: &Vcpu, seat: &Seat) -> Out {
    let mut fd = vcpu.fd();
    let devices = &shared.devices;
    let why = loop {
        match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => match devices.port_out(vcpu.index, port, data) {
                Effect::None => {}
                Effect::Sleep(duration) => seat.sleep(duration),
                Effect::Reset(how) => return Out::Reset(how.to_owned()),
            },
            Ok(VcpuExit::IoIn(port, data)) => devices.port_in(vcpu.index, port, data),
            Ok(VcpuExit::MmioRead(addr, data)) => devices.disks.mmio_read(addr, data),
            Ok(VcpuExit::MmioWrite(addr, data)) => devices.disks.mmio_write(addr, data),
            Ok(VcpuExit::Intr) => return Out::Interrupted,
            // A vCPU that waits for its start is interrupted so, too.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Out::Interrupted,
            Ok(VcpuExit::Hlt) => seat.sleep(HALT),
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_)) => {}
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Out::Reset("shut down".to_owned());
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Out::Reset("reset".to_owned());
            }
            Ok(VcpuExit::InternalError) => {
                let error = InternalError::of(&mut fd);
                if !(error.is_emulation() && quirks::complete(&fd, &error.instruction)) {
                    break error.describe();
                }
            }
            Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => {
                if let Some(Err(error)) = shared.rings.as_ref().map(|r| r.make_room()) {
                    break format!("its full dirty ring cannot be emptied: {error}");
                }
            }
            Ok(VcpuExit::Shutdown) => break "triple fault".to_owned(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                break format!("the processor refuses its state: reason {reason:#x} on CPU {cpu}");
            }
            Ok(exit) => break format!("KVM came back with what nothing is known of: {exit:?}"),
            Err(e) => break format!("KVM cannot run it: {e}"),
        }
    };
    Out::Crashed(crash::describe(vcpu.index, &why, &fd))
}
