//! The KVM machine: vCPUs run by threads of this process, interrupt controllers and timer in the
//! kernel, a few devices on I/O ports, a PVH boot.
//!
//! No migration is done here, and no dirty page is tracked: see the crate's documentation.

mod check;
mod clock;
mod cpuid;
mod crash;
mod disks;
mod entry;
mod error;
mod features;
mod kick;
mod msrs;
mod quirks;
mod state;
mod transfer;
mod vcpu;
mod vm;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VmFd;
use vmferry_guest::PAYLOAD;
use vmferry_guest::params::Params;
use vmferry_memory::GuestRam;
use vmferry_tracker::{DirtyRings, DirtyTracker, KvmSide, TrackerError, TrackerKind};

use crate::boot::{self, Image};
use crate::config::{Boot, MachineConfig};
use crate::devices::Devices;
use crate::devices::virtio::{Disks, OpenDisk, Role};
use crate::gate::{Gate, Wanted};
use crate::{EventSink, Machine, MachineError, MachineEvent, MachineState, Recorder, arena, lock};
use state::Saved;
use vcpu::Vcpu;
use vm::Host;

/// A vCPU comes out of the guest in microseconds; one that needs longer than this is held by the
/// kernel.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A vCPU that does not come is called again after so long: its thread may have been about to
/// wait for something other than the guest when it was called.
const CALL_AGAIN: Duration = Duration::from_millis(20);

/// See [`crate::host_cpu_features`].
pub(crate) fn host_cpu_features() -> Result<Vec<String>, MachineError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(error::no_kvm)?;
    Ok(features::present(&cpuid::of_host(&kvm)?))
}

/// What the machine and its threads share.
struct Shared {
    /// Declared before the VM and RAM, which it needs.
    vcpus: Vec<Vcpu>,
    devices: Devices,
    rings: Option<Arc<DirtyRings>>,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    host: Host,
    recorder: Option<Arc<Recorder>>,
    events: EventSink,
    gate: Arc<Gate>,
    /// What vCPUs were given as their CPUID, where it was restored.
    cpuids: Mutex<Vec<Vec<kvm_cpuid_entry2>>>,
    /// Held for moments only, as threads that crash need it; where both are needed, it is taken
    /// before the gate's.
    state: Mutex<MachineState>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, MachineState> {
        lock(&self.state)
    }

    /// The CPUID of vCPU `index`.
    fn cpuid_of(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let restored = lock(&self.cpuids);
        match restored.get(index as usize) {
            Some(cpuid) => cpuid.clone(),
            None => cpuid::of_vcpu(&self.host.cpuid, index, self.vcpus.len() as u32),
        }
    }

    /// A vCPU cannot go on.
    fn crash(&self, detail: String) {
        let state = MachineState::Crashed(detail.clone());
        self.end(state, MachineEvent::Crashed { detail });
    }

    /// The guest has ended the machine.
    fn reset(&self, detail: String) {
        self.end(MachineState::Stopped, MachineEvent::Stopped { detail });
    }

    /// Ends all threads, from one of them; only the first to come tells of it.
    fn end(&self, end: MachineState, event: MachineEvent) {
        {
            let mut state = self.state();
            if matches!(*state, MachineState::Crashed(_) | MachineState::Stopped) {
                return;
            }
            *state = end;
            self.gate.set(Wanted::Stop);
        }
        self.kick_all();
        (self.events)(event);
    }

    fn kick_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
    }

    /// Calls all threads to the gate, and waits until each stands there or is gone; false where
    /// that takes too long.
    fn gather(&self) -> bool {
        let began = Instant::now();
        loop {
            self.kick_all();
            if self.gate.wait_all_standing(CALL_AGAIN) {
                return true;
            }
            if began.elapsed() > PAUSE_TIMEOUT {
                return false;
            }
        }
    }
}

/// See the module's documentation.
pub(crate) struct KvmMachine {
    config: MachineConfig,
    shared: Arc<Shared>,
    /// Held throughout every call that changes the run state: one at a time. Empty once stopped.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for KvmMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmMachine")
            .field("config", &self.config)
            .field("state", &*self.shared.state())
            .finish_non_exhaustive()
    }
}

impl KvmMachine {
    /// Maps RAM, makes the VM and starts the vCPU threads, which stand still.
    ///
    /// # Errors
    /// [`MachineError::Config`], [`MachineError::NoKvm`], [`MachineError::Kvm`],
    /// [`MachineError::File`] for a console, [`MachineError::Memory`], [`MachineError::Disk`],
    /// [`MachineError::Threads`].
    pub(crate) fn create(
        config: &MachineConfig,
        events: EventSink,
        role: Role,
        opener: &OpenDisk,
    ) -> Result<Arc<dyn Machine>, MachineError> {
        arena::check_vcpus(config.vcpus)?;
        let ram = Arc::new(GuestRam::new(config.ram_bytes)?);
        let recorder = match &config.boot {
            Boot::Workload { cmdline } => {
                arena::find(&ram, &Params::parse(cmdline.as_bytes()))?;
                Some(Arc::new(Recorder::new(config.vcpus)))
            }
            Boot::Kernel { .. } => None,
        };
        kick::install_handler()?;
        let vm = vm::create(&ram, config.vcpus, config.dirty_rings)?;
        let (fd, sink) = (Arc::clone(&vm.fd), Arc::clone(&events));
        let disks = Disks::open(config, &ram, role, opener)?;
        disks::wire(&fd, &disks)?;
        let machine = Self {
            config: config.clone(),
            shared: Arc::new(Shared {
                vcpus: (0..)
                    .zip(vm.vcpus)
                    .map(|(index, fd)| Vcpu::new(index, fd))
                    .collect(),
                devices: Devices::new(config, fd, recorder.clone(), disks, sink)?,
                rings: vm.rings,
                vm: vm.fd,
                ram,
                host: vm.host,
                recorder,
                events,
                gate: Gate::new(),
                cpuids: Mutex::default(),
                state: Mutex::new(MachineState::Created),
            }),
            threads: Mutex::default(),
        };
        // If a thread cannot be started, dropping the machine ends those that were.
        for index in 0..config.vcpus {
            let thread = vcpu::start(&machine.shared, index)?;
            lock(&machine.threads).push(thread);
        }
        Ok(Arc::new(machine))
    }

    /// Created → Paused; `set` does what is to be done on the way.
    fn begin(
        &self,
        what: &'static str,
        set: impl FnOnce() -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let _one_at_a_time = lock(&self.threads);
        let mut state = self.shared.state();
        if *state != MachineState::Created {
            return Err(state.forbids(what));
        }
        set()?;
        *state = MachineState::Paused;
        Ok(())
    }

    fn load(&self) -> Result<(), MachineError> {
        let shared = &self.shared;
        let line;
        let image = match &self.config.boot {
            Boot::Workload { cmdline } => {
                let khz = u64::from(shared.host.tsc_khz);
                line = arena::command_line(cmdline, self.config.vcpus, khz);
                Image {
                    kernel: Err(PAYLOAD),
                    initrd: None,
                    cmdline: &line,
                    mp_table: None,
                }
            }
            Boot::Kernel {
                kernel,
                initrd,
                cmdline,
            } => {
                line = disks::command_line(cmdline, &shared.devices.disks);
                Image {
                    kernel: Ok(kernel),
                    initrd: initrd.as_deref(),
                    cmdline: &line,
                    mp_table: Some(self.config.vcpus),
                }
            }
        };
        let address = boot::load(&shared.ram, &image)?;
        for vcpu in &shared.vcpus {
            let fd = vcpu.fd();
            if shared.recorder.is_none() {
                entry::firmware(&fd)?;
            }
            // A kernel starts its other processors itself.
            if vcpu.index == 0 || shared.recorder.is_some() {
                entry::pvh(&fd, vcpu.index, address)?;
            }
        }
        Ok(())
    }
}

impl Machine for KvmMachine {
    fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.shared.ram
    }

    fn disks(&self) -> &Arc<Disks> {
        &self.shared.devices.disks
    }

    fn cpu_features(&self) -> Vec<String> {
        features::present(&self.shared.cpuid_of(0))
    }

    fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, TrackerError> {
        let kvm = KvmSide {
            vm: Arc::clone(&self.shared.vm),
            rings: self.shared.rings.clone(),
        };
        vmferry_tracker::make(kind, Arc::clone(&self.shared.ram), Some(kvm))
    }

    fn state(&self) -> MachineState {
        self.shared.state().clone()
    }

    fn boot(&self) -> Result<(), MachineError> {
        self.begin("booting", || self.load())
    }

    fn resume(&self) -> Result<(), MachineError> {
        let _one_at_a_time = lock(&self.threads);
        let mut state = self.shared.state();
        match *state {
            MachineState::Paused => {
                self.shared.devices.disks.release();
                *state = MachineState::Running;
                self.shared.gate.set(Wanted::Run);
                Ok(())
            }
            MachineState::Running => Ok(()),
            _ => Err(state.forbids("resuming")),
        }
    }

    /// As the trait says; where a vCPU cannot be stopped in time, the machine runs on.
    fn pause(&self) -> Result<(), MachineError> {
        let _one_at_a_time = lock(&self.threads);
        {
            let state = self.shared.state();
            match *state {
                MachineState::Running => self.shared.gate.set(Wanted::Pause),
                MachineState::Paused => return Ok(()),
                _ => return Err(state.forbids("pausing")),
            }
        }
        let all_stand = self.shared.gather();
        let mut state = self.shared.state();
        if *state != MachineState::Running {
            return Err(state.forbids("pausing"));
        }
        if !all_stand {
            self.shared.gate.set(Wanted::Run);
            return Err(MachineError::Threads(format!(
                "a vCPU did not stand still within {} s; the machine runs on",
                PAUSE_TIMEOUT.as_secs()
            )));
        }
        *state = MachineState::Paused;
        Ok(())
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        let _one_at_a_time = lock(&self.threads);
        {
            let state = self.shared.state();
            if *state != MachineState::Paused {
                return Err(state.forbids("saving"));
            }
        }
        let saved = transfer::save(&self.shared, &self.config)?;
        saved.encode().map_err(MachineError::State)
    }

    /// As the trait says. Where KVM refuses a part, others may have been set.
    fn restore(&self, blob: &[u8]) -> Result<(), MachineError> {
        self.begin("restoring", || {
            let shared = &self.shared;
            let saved = Saved::try_from(blob).map_err(MachineError::State)?;
            saved
                .check(&self.config, &shared.host)
                .and_then(|()| transfer::restore(shared, &saved))
                .map_err(MachineError::State)?;
            *lock(&shared.cpuids) = saved.vcpus.iter().map(|v| v.cpuid()).collect();
            Ok(())
        })
    }

    fn workload(&self) -> Option<&Arc<Recorder>> {
        self.shared.recorder.as_ref()
    }

    fn stop(&self) {
        let mut threads = lock(&self.threads);
        {
            let mut state = self.shared.state();
            if !matches!(*state, MachineState::Crashed(_)) {
                *state = MachineState::Stopped;
            }
            self.shared.gate.set(Wanted::Stop);
        }
        if !threads.is_empty() && !self.shared.gather() {
            // A thread that the kernel holds keeps what it needs; waiting would help nobody.
            tracing::error!("a vCPU thread does not end; it is left behind");
            threads.clear();
        }
        for thread in threads.drain(..) {
            // A panic has been told as a crash.
            let _ = thread.join();
        }
        self.shared.devices.close();
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.stop();
    }
}
