//! A machine with its events, for tests.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vmferry_guest::abi;
use vmferry_machine::{
    Boot, Console, Machine, MachineConfig, MachineError, MachineEvent, MachineKind, Role, create,
};
use vmferry_protocol::PageRange;

/// Nothing takes that long unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Whether tests can be run here.
pub(crate) fn has_kvm() -> bool {
    let there = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !there {
        println!("SKIPPED (no /dev/kvm)");
    }
    there
}

/// A machine of 64 MiB with the built-in workload.
pub(crate) fn config(cmdline: &str, vcpus: u32) -> MachineConfig {
    MachineConfig {
        kind: MachineKind::Kvm,
        ram_bytes: 64 << 20,
        vcpus,
        boot: Boot::Workload {
            cmdline: cmdline.to_owned(),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: Vec::new(),
    }
}

pub(crate) struct Rig {
    pub(crate) machine: Arc<dyn Machine>,
    events: Receiver<MachineEvent>,
}

impl Rig {
    /// A machine with nothing in it.
    pub(crate) fn create(config: &MachineConfig) -> Self {
        Self::try_create(config).unwrap()
    }

    /// As [`Self::create`], where this host can have it.
    pub(crate) fn try_create(config: &MachineConfig) -> Result<Self, MachineError> {
        let (send, events) = channel();
        let sink = Arc::new(move |event| drop(send.send(event)));
        let machine = create(config, sink, Role::Owner)?;
        Ok(Self { machine, events })
    }

    /// A machine that has booted and runs.
    pub(crate) fn boot(config: &MachineConfig) -> Self {
        let rig = Self::create(config);
        rig.machine.boot().unwrap();
        rig.machine.resume().unwrap();
        rig
    }

    pub(crate) fn next(&self) -> MachineEvent {
        match self.events.recv_timeout(LONG) {
            Ok(event) => event,
            Err(e) => panic!("{e}; the machine is {:?}", self.machine.state()),
        }
    }

    pub(crate) fn wait_ready(&self) {
        assert_eq!(self.next(), MachineEvent::WorkloadReady);
    }

    /// Has the workload verify, and expects all vCPUs to say that all is well.
    pub(crate) fn verify(&self) {
        self.machine.workload().unwrap().verify();
        let vcpus = self.machine.config().vcpus;
        let mut told: Vec<u32> = (0..vcpus)
            .map(|_| match self.next() {
                MachineEvent::Verified { vcpu, result } => {
                    assert_eq!(result, abi::VERIFY_OK, "vCPU {vcpu}");
                    vcpu
                }
                other => panic!("{other:?}"),
            })
            .collect();
        told.sort_unstable();
        assert!((0..vcpus).eq(told));
    }

    /// Work of every vCPU so far.
    pub(crate) fn work(&self) -> Vec<u64> {
        self.machine.workload().unwrap().save().work
    }

    /// Waits until every vCPU has told of a beat with at least the work in `before`.
    pub(crate) fn wait_beats_after(&self, before: &[u64]) {
        let began = std::time::Instant::now();
        let heard = self.machine.workload().unwrap().beats();
        loop {
            let beats = self.machine.workload().unwrap().beats();
            let on = beats
                .iter()
                .zip(&heard)
                .zip(before)
                .all(|((now, then), work)| {
                    now.len() > then.len() && now.last().is_some_and(|b| b.work >= *work)
                });
            if on {
                return;
            }
            assert!(began.elapsed() < LONG, "no heartbeats");
            std::thread::yield_now();
        }
    }
}

/// A second machine with the RAM and state of a paused one.
pub(crate) fn transplant(source: &Rig, blob: &[u8]) -> Rig {
    let to = Rig::create(source.machine.config());
    copy_ram(source, &to);
    to.machine.restore(blob).unwrap();
    to
}

/// Copies all pages that exist.
pub(crate) fn copy_ram(from: &Rig, to: &Rig) {
    let (from, to) = (from.machine.ram(), to.machine.ram());
    let mut runs = Vec::new();
    from.populated(|run| runs.push(run)).unwrap();
    for run in runs {
        let mut at = run.start;
        while at < run.end() {
            let n = (run.end() - at).min(256);
            let range = PageRange::new(at, n);
            let mut bytes = vec![0; range.bytes() as usize];
            from.copy_out(range, &mut bytes).unwrap();
            to.copy_in(range, &bytes).unwrap();
            at += n;
        }
    }
}

/// The content of guest frame `frame`.
pub(crate) fn page(rig: &Rig, frame: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let ram = rig.machine.ram();
    ram.copy_out(PageRange::new(frame, 1), &mut bytes).unwrap();
    bytes
}
