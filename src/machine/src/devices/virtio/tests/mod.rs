//! Disks with a driver that is driven by hand, on a disk in memory.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod driver;
mod handover;
mod hostile;
mod io;
mod saved;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmferry_block::{BlockBackend, DiskSource, DiskSpec, JobId, JobKey, MemoryDisk};
use vmferry_memory::GuestRam;

use super::*;
use crate::{Boot, Console, MachineConfig, MachineKind};
use driver::Driver;

/// Only a test that fails waits for so long.
const LONG: Duration = Duration::from_secs(120);
const RAM: u64 = 8 << 20;

fn spec() -> DiskSpec {
    DiskSpec {
        serial: "serial-7".to_owned(),
        ..DiskSource::File("twin".into()).spec()
    }
}

fn config(disks: Vec<DiskSpec>) -> MachineConfig {
    MachineConfig {
        kind: MachineKind::Process,
        ram_bytes: RAM,
        vcpus: 1,
        boot: Boot::Workload {
            cmdline: String::new(),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks,
    }
}

fn opener(disk: &MemoryDisk) -> OpenDisk {
    let disk = disk.clone();
    Arc::new(move |_, _| Ok(Box::new(disk.open().unwrap()) as Box<dyn BlockBackend>))
}

fn key(job: u64) -> JobKey {
    JobKey {
        disk: 0,
        job: JobId(job),
    }
}

/// A host with a write of ones to block 1 that stalls, as all that follows, and can be cancelled or
/// not.
fn stalled(refuses_cancel: bool) -> (MemoryDisk, Host) {
    let disk = MemoryDisk::new(1 << 20);
    let mut host = Host::started(&disk);
    disk.stall(true);
    disk.refuse_cancel(refuses_cancel);
    host.driver.write_block(0, 1, 1);
    let _ = disk.wait_stalled(1);
    (disk, host)
}

/// Waits for what another thread does.
pub(crate) fn until(what: &str, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < LONG, "{what}: it does not come");
        std::thread::yield_now();
    }
}

/// One host's side.
pub(crate) struct Host {
    pub(crate) driver: Driver,
    pub(crate) disks: Arc<Disks>,
    events: Mutex<Receiver<IoEvent>>,
}

impl Host {
    fn with(disk: &MemoryDisk, spec: DiskSpec, role: Role) -> Self {
        let ram = Arc::new(GuestRam::new(RAM).unwrap());
        let disks = Disks::open(&config(vec![spec]), &ram, role, &opener(disk)).unwrap();
        let (told, events) = channel();
        disks.watch(Arc::new(move |event| {
            let _ = told.send(event);
        }));
        Self {
            driver: Driver::new(ram, disks.clone()),
            disks,
            events: Mutex::new(events),
        }
    }

    /// A host whose driver has started the device.
    pub(crate) fn started(disk: &MemoryDisk) -> Self {
        let mut host = Self::with(disk, spec(), Role::Owner);
        host.driver.start();
        host
    }

    fn event(&self) -> IoEvent {
        crate::lock(&self.events).recv_timeout(LONG).unwrap()
    }

    /// Another host that has taken over what this one, which is held, has saved.
    fn moved(&self, disk: &MemoryDisk) -> Self {
        let blob = postcard::to_stdvec(&self.disks.save().unwrap()).unwrap();
        let mut heir = Self::with(disk, spec(), Role::Heir);
        self.driver.copy_to(&mut heir.driver);
        let saved: Vec<SavedDisk> = postcard::from_bytes(&blob).unwrap();
        heir.disks.restore(&saved).unwrap();
        heir
    }
}
