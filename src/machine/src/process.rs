//! The process machine: the built-in workload as native threads on guest RAM, one for each vCPU.
//!
//! It is not a virtual machine: no kernel boots on it, and nothing is kept from anything. It lets
//! whatever moves RAM and state work, and be tested, where there is no /dev/kvm. All that the
//! workload knows lies in its arena in RAM, so the saved state holds little more than what the
//! VMM knows of it.

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_guest::abi;
use vmferry_guest::disk::Failure;
use vmferry_guest::params::{Kind, Params};
use vmferry_guest::platform::Platform;
use vmferry_guest::workload::Worker;
use vmferry_memory::GuestRam;
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind};

use crate::config::{Boot, MachineConfig, MachineKind};
use crate::devices::Output;
use crate::devices::virtio::{Disks, OpenDisk, Role, SavedDisk};
use crate::gate::{Gate, Seat, Wanted, precise_sleep};
use crate::workload::{Recorder, RecorderState, monotonic_ns};
use crate::{EventSink, Machine, MachineError, MachineEvent, MachineState, arena, lock};

/// The clock that the workload sees counts nanoseconds.
const CLOCK_KHZ: u64 = 1_000_000;
/// Workers need little, and sinks of events not much more.
const STACK_BYTES: usize = 256 << 10;
/// A step takes about a millisecond; a thread that needs longer than this waits for memory that
/// does not come.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Version of the saved state.
const STATE_VERSION: u32 = 3;
/// Longest saved state, in bytes: many times what vCPUs and disks with all that they have in
/// flight need.
const MAX_STATE_BYTES: usize = 8 << 20;

/// Comes first in the saved state, in every version of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    kind: MachineKind,
    version: u32,
}

/// The saved state, after its header.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    shape: Shape,
    recorder: RecorderState,
    disks: Vec<SavedDisk>,
}

/// What must be the same at both ends for the workload to go on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    ram_bytes: u64,
    kind: u32,
    ws_pages: u64,
    fill_pages: u64,
    rate: u64,
    zero: u64,
    text: u64,
    structs: u64,
    seed: u64,
    stride: u64,
    vcpus: u64,
    disk: DiskShape,
}

/// The part of a [`Shape`] that is about the disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskShape {
    depth: u64,
    blocks: u64,
    write: u64,
    flush: u64,
    rate: u64,
    overlap: u64,
}

impl Shape {
    fn of(config: &MachineConfig, params: &Params) -> Self {
        Self {
            ram_bytes: config.ram_bytes,
            kind: match params.kind {
                Kind::Idle => 0,
                Kind::Dense => 1,
                Kind::Sparse => 2,
                Kind::Readmostly => 3,
                Kind::RewriteSame => 4,
            },
            ws_pages: params.ws_pages,
            fill_pages: params.fill_pages,
            rate: params.rate,
            zero: params.zero,
            text: params.text,
            structs: params.structs,
            seed: params.seed,
            stride: params.stride,
            vcpus: params.vcpus,
            disk: DiskShape {
                depth: params.disk_depth,
                blocks: params.disk_blocks,
                write: params.disk_write,
                flush: params.disk_flush,
                rate: params.disk_rate,
                overlap: params.disk_overlap,
            },
        }
    }
}

/// What the machine and its threads share.
struct Shared {
    ram: Arc<GuestRam>,
    recorder: Arc<Recorder>,
    disks: Arc<Disks>,
    events: EventSink,
    gate: Arc<Gate>,
    debug: Mutex<Output>,
    /// Held for moments only, as threads that crash need it; where both are needed, it is taken
    /// before the gate's.
    state: Mutex<MachineState>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, MachineState> {
        lock(&self.state)
    }

    /// A thread has come to a bad end: the others cannot do without it.
    fn crash(&self, detail: String) {
        {
            let mut state = self.state();
            if matches!(*state, MachineState::Crashed(_)) {
                return;
            }
            *state = MachineState::Crashed(detail.clone());
            self.gate.set(Wanted::Stop);
        }
        (self.events)(MachineEvent::Crashed { detail });
    }
}

/// See the module's documentation.
pub(crate) struct ProcessMachine {
    config: MachineConfig,
    params: Params,
    shared: Arc<Shared>,
    /// Held throughout every call that changes the run state: one at a time. Empty once stopped.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for ProcessMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMachine")
            .field("config", &self.config)
            .field("state", &*self.shared.state())
            .finish_non_exhaustive()
    }
}

impl ProcessMachine {
    /// Maps RAM and starts the threads, which stand still.
    ///
    /// # Errors
    /// [`MachineError::Config`] for what this machine cannot be, [`MachineError::Memory`],
    /// [`MachineError::Disk`], [`MachineError::Threads`].
    pub(crate) fn create(
        config: &MachineConfig,
        events: EventSink,
        role: Role,
        opener: &OpenDisk,
    ) -> Result<Arc<dyn Machine>, MachineError> {
        let params = params_of(config)?;
        let ram = Arc::new(GuestRam::new(config.ram_bytes)?);
        let arena = arena::find(&ram, &params)?;
        let machine = Self {
            config: config.clone(),
            params,
            shared: Arc::new(Shared {
                recorder: Arc::new(Recorder::new(config.vcpus)),
                disks: Disks::open(config, &ram, role, opener)?,
                ram,
                events,
                gate: Gate::new(),
                debug: Mutex::new(Output::open("the debug console", &config.debugcon)?),
                state: Mutex::new(MachineState::Created),
            }),
            threads: Mutex::new(Vec::new()),
        };
        // If a thread cannot be started, dropping the machine ends those that were.
        for index in 0..config.vcpus {
            let thread = start(&machine.shared, arena, params, index)?;
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

    fn decode(&self, blob: &[u8]) -> Result<Saved, MachineError> {
        let refuse = |why: &str| MachineError::State(why.to_owned());
        if blob.len() > MAX_STATE_BYTES {
            return Err(refuse("it is too long for a process machine's"));
        }
        let (header, rest) = postcard::take_from_bytes::<Header>(blob)
            .map_err(|_| refuse("it does not begin as a process machine's"))?;
        if header.kind != MachineKind::Process {
            return Err(refuse("it is not a process machine's"));
        }
        if header.version != STATE_VERSION {
            return Err(MachineError::State(format!(
                "it has version {}, and this is vmferry for version {STATE_VERSION}",
                header.version
            )));
        }
        let (saved, rest) = postcard::take_from_bytes::<Saved>(rest)
            .map_err(|_| refuse("it is cut off or garbled"))?;
        if !rest.is_empty() {
            return Err(refuse("there is more after its end"));
        }
        if saved.shape != Shape::of(&self.config, &self.params) {
            return Err(refuse(
                "it is of a machine with other RAM, vCPUs or workload parameters",
            ));
        }
        Ok(saved)
    }
}

impl Machine for ProcessMachine {
    fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.shared.ram
    }

    fn disks(&self) -> &Arc<Disks> {
        &self.shared.disks
    }

    /// None: the threads use the processor as it is, and nothing of that travels.
    fn cpu_features(&self) -> Vec<String> {
        Vec::new()
    }

    fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, TrackerError> {
        vmferry_tracker::make(kind, Arc::clone(&self.shared.ram), None)
    }

    fn state(&self) -> MachineState {
        self.shared.state().clone()
    }

    /// There is nothing to load: a workload begins on RAM that is all zero.
    fn boot(&self) -> Result<(), MachineError> {
        self.begin("booting", || Ok(()))
    }

    fn resume(&self) -> Result<(), MachineError> {
        let _one_at_a_time = lock(&self.threads);
        let mut state = self.shared.state();
        match *state {
            MachineState::Paused => {
                self.shared.disks.release();
                *state = MachineState::Running;
                self.shared.gate.set(Wanted::Run);
                Ok(())
            }
            MachineState::Running => Ok(()),
            _ => Err(state.forbids("resuming")),
        }
    }

    /// As the trait says; where threads do not stand in time, the machine runs on.
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
        let all_stand = self.shared.gate.wait_all_standing(PAUSE_TIMEOUT);
        let mut state = self.shared.state();
        if *state != MachineState::Running {
            return Err(state.forbids("pausing"));
        }
        if !all_stand {
            self.shared.gate.set(Wanted::Run);
            return Err(MachineError::Threads(format!(
                "a vCPU thread did not stand still within {} s; the machine runs on",
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
        let header = Header {
            kind: MachineKind::Process,
            version: STATE_VERSION,
        };
        let saved = Saved {
            shape: Shape::of(&self.config, &self.params),
            recorder: self.shared.recorder.save(),
            disks: self.shared.disks.save().map_err(MachineError::State)?,
        };
        postcard::to_stdvec(&(header, saved))
            .map_err(|e| MachineError::State(format!("it cannot be written: {e}")))
    }

    /// As the trait says. RAM is not looked at: the workers take whatever is in it when they run.
    fn restore(&self, blob: &[u8]) -> Result<(), MachineError> {
        let saved = self.decode(blob)?;
        self.begin("restoring", || {
            let set = self.shared.recorder.restore(&saved.recorder);
            set.and_then(|()| self.shared.disks.restore(&saved.disks))
                .map_err(MachineError::State)
        })
    }

    fn workload(&self) -> Option<&Arc<Recorder>> {
        Some(&self.shared.recorder)
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
        for thread in threads.drain(..) {
            // A panic of the worker has been told as a crash; one outside it has nothing to add.
            let _ = thread.join();
        }
        self.shared.disks.retire();
        *lock(&self.shared.debug) = Output::None;
    }
}

impl Drop for ProcessMachine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One vCPU's view of its machine.
struct Vcpu {
    index: u32,
    shared: Arc<Shared>,
    seat: Seat,
}

impl Platform for Vcpu {
    fn tsc(&mut self) -> u64 {
        monotonic_ns()
    }

    fn heartbeat(&mut self, work: u64) {
        self.shared.recorder.beat(self.index, work as u32);
    }

    fn command(&mut self) -> u32 {
        self.shared.recorder.take_command(self.index)
    }

    fn sleep_us(&mut self, us: u32) {
        let us = us.min(abi::MAX_SLEEP_US);
        self.seat.sleep(Duration::from_micros(u64::from(us)));
    }

    fn verified(&mut self, result: u32) {
        (self.shared.events)(MachineEvent::Verified {
            vcpu: self.index,
            result,
        });
    }

    fn ready(&mut self) {
        if self.shared.recorder.ready() {
            (self.shared.events)(MachineEvent::WorkloadReady);
        }
    }

    fn registers_intact(&mut self) -> bool {
        true
    }

    fn mmio_read32(&mut self, addr: u64) -> u32 {
        let mut value = [0; 4];
        self.shared.disks.mmio_read(addr, &mut value);
        u32::from_le_bytes(value)
    }

    fn mmio_write32(&mut self, addr: u64, value: u32) {
        self.shared.disks.mmio_write(addr, &value.to_le_bytes());
    }

    fn disk_beat(&mut self, completed: u64) {
        self.shared.recorder.disk_beat(self.index, completed as u32);
    }

    fn disk_failed(&mut self, failure: &Failure) {
        // In one piece, as other vCPUs may have something to say, too. Never fails.
        let line = format!("{failure}\n");
        let _ = lock(&self.shared.debug).write(line.as_bytes());
    }
}

/// Starts the thread of vCPU `index` over the arena at host address `arena`, which lies in
/// `shared.ram` with all the pages that `params` asks for.
fn start(
    shared: &Arc<Shared>,
    arena: usize,
    params: Params,
    index: u32,
) -> Result<JoinHandle<()>, MachineError> {
    let mut vcpu = Vcpu {
        index,
        shared: Arc::clone(shared),
        seat: shared.gate.seat(),
    };
    let run = move || {
        precise_sleep();
        let arena = std::ptr::with_exposed_provenance_mut(arena);
        // SAFETY: `arena` is page aligned and valid for the arena's pages, as `create` has checked;
        // `vcpu` keeps RAM mapped, and outlives the worker; each thread has its own index.
        let mut worker = unsafe { Worker::new(arena, params, index) };
        let worked = catch_unwind(AssertUnwindSafe(|| {
            while vcpu.seat.pass() {
                worker.step(&mut vcpu);
            }
        }));
        if let Err(panic) = worked {
            let why = message(panic.as_ref());
            vcpu.shared.crash(format!("vCPU {index} panicked: {why}"));
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|e| MachineError::Threads(format!("cannot start the thread of vCPU {index}: {e}")))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The workload's parameters, once `config` is one that this machine can have.
fn params_of(config: &MachineConfig) -> Result<Params, MachineError> {
    let Boot::Workload { cmdline } = &config.boot else {
        return Err(MachineError::Config(
            "a process machine cannot boot a kernel: use a KVM machine (it needs /dev/kvm), or \
             boot the built-in workload"
                .to_owned(),
        ));
    };
    arena::check_vcpus(config.vcpus)?;
    let line = arena::command_line(cmdline, config.vcpus, CLOCK_KHZ);
    Ok(Params::parse(line.as_bytes()))
}
