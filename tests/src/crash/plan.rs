//! From a seed to a guest and its disk.

use std::path::Path;

use vmferry_guest::pattern::mix;
use vmferry_machine::{Boot, Console, DiskSource, DiskSpec, MachineConfig, MachineKind};

use super::{Point, Victim};

/// Bytes of RAM: enough for the workload's arena.
const RAM: u64 = 16 << 20;
/// Bytes of the disk, all of which the workload uses.
pub(super) const DISK: u64 = 1 << 20;

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Where a process is to stand when the fault comes.
    pub point: Point,
    /// What the fault hits.
    pub victim: Victim,
    /// What the guest does, and how slow its disk is.
    pub seed: u64,
    /// The sort of machine.
    pub kind: MachineKind,
}

/// What the seed has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) vcpus: u32,
    delay_ms: u32,
    /// The same at the destination. Where storage is quicker there, what the source has in flight
    /// comes late indeed.
    pub(super) delay_there_ms: u32,
    pub(super) tracker: &'static str,
    /// Connections that are refused after a cut, before one is taken.
    pub(super) refuse: u32,
    workload: String,
    kind: MachineKind,
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = mix(self.0.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.0 % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

impl Plan {
    pub(super) fn of(case: &Case) -> Self {
        let which = case.point as u64 * 3 + case.victim as u64;
        let mut dice = Dice(mix(case.seed) ^ which);
        let slow = case.point.needs_slow_storage();
        let delay_ms = dice.of(if slow { &[20, 150] } else { &[0, 20, 150] });
        let depth = dice.below(32) + 1;
        let workload = format!(
            "workload=dense ws-mib=1 fill-mib=1 rate=2000 seed={} disk-depth={depth} disk-mib=1 \
             disk-write={} disk-flush={} disk-rate=2000 disk-overlap={}",
            dice.below(1 << 20),
            dice.of(&[60, 80, 100]),
            dice.of(&[0, 16, 64]),
            dice.of(&[0, 30, 80]),
        );
        Self {
            vcpus: dice.of(&[1, 2]),
            delay_ms,
            delay_there_ms: dice.of(&[0, delay_ms]),
            tracker: match case.kind {
                MachineKind::Kvm => "kvm-log",
                MachineKind::Process => dice.of(&["wp-group", "wp-async"]),
            },
            refuse: dice.of(&[0, 1, 2]),
            workload,
            kind: case.kind,
        }
    }

    pub(super) fn disk(&self, image: &Path) -> DiskSpec {
        DiskSpec {
            queues: self.vcpus as u16,
            delay_ms: self.delay_ms,
            ..DiskSource::File(image.to_owned()).spec()
        }
    }

    pub(super) fn machine(&self, image: &Path, debug: &Path) -> MachineConfig {
        MachineConfig {
            kind: self.kind,
            ram_bytes: RAM,
            vcpus: self.vcpus,
            boot: Boot::Workload {
                cmdline: self.workload.clone(),
            },
            serial: Console::None,
            debugcon: Console::File(debug.to_owned()),
            dirty_rings: false,
            disks: vec![self.disk(image)],
        }
    }
}
