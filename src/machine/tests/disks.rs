//! Machines with a disk, on both sorts: the built-in workload keeps a ledger of what its disk must
//! hold, and verifies it, also after a move with writes that land late.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmferry_block::{BlockBackend, DiskSource, DiskSpec, MemoryDisk};
use vmferry_guest::abi;
use vmferry_machine::{
    Boot, Console, Disks, IoEvent, Machine, MachineConfig, MachineError, MachineEvent, MachineKind,
    OpenDisk, Role, create_with,
};
use vmferry_protocol::PageRange;

/// Only a test that fails waits for so long.
const LONG: Duration = Duration::from_secs(120);
const VCPUS: u32 = 2;
const DISK: u64 = 8 << 20;

fn config(kind: MachineKind) -> MachineConfig {
    MachineConfig {
        kind,
        ram_bytes: 32 << 20,
        vcpus: VCPUS,
        boot: Boot::Workload {
            cmdline: "workload=sparse ws-mib=2 fill-mib=4 rate=20000 disk-depth=8 disk-mib=4 \
                      disk-overlap=50"
                .to_owned(),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: vec![DiskSpec {
            queues: VCPUS as u16,
            ..DiskSource::File("twin".into()).spec()
        }],
    }
}

struct Rig {
    machine: Arc<dyn Machine>,
    events: Receiver<MachineEvent>,
    io: Receiver<IoEvent>,
}

impl Rig {
    fn new(kind: MachineKind, disk: &MemoryDisk, role: Role) -> Self {
        let (told, events) = channel();
        let sink = Arc::new(move |event| {
            let _ = told.send(event);
        });
        let disk = disk.clone();
        let opener: OpenDisk =
            Arc::new(move |_, _| Ok(Box::new(disk.open().unwrap()) as Box<dyn BlockBackend>));
        let machine = create_with(&config(kind), sink, role, &opener).unwrap();
        let (told, io) = channel();
        machine.disks().watch(Arc::new(move |event| {
            let _ = told.send(event);
        }));
        Self {
            machine,
            events,
            io,
        }
    }

    fn disks(&self) -> &Disks {
        self.machine.disks()
    }

    /// Everything that the workload knows of RAM and disk is right, once nothing is in flight.
    #[track_caller]
    fn assert_right(&self) {
        self.machine.workload().unwrap().verify_settled();
        for _ in 0..VCPUS {
            match self.events.recv_timeout(LONG).unwrap() {
                MachineEvent::Verified { result, .. } => assert_eq!(result, abi::VERIFY_OK),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the guest has had so many more answers.
    fn wait_answers(&self, more: u64) {
        let answers = || self.disks().stats().requests;
        let enough = answers() + more;
        until("answers", || answers() >= enough);
    }

    /// Another machine with this one's RAM and state.
    fn moved(&self, kind: MachineKind, disk: &MemoryDisk) -> Self {
        let blob = self.machine.save().unwrap();
        let heir = Self::new(kind, disk, Role::Heir);
        let copy = |range: PageRange| {
            let mut pages = vec![0; range.bytes() as usize];
            self.machine.ram().copy_out(range, &mut pages).unwrap();
            heir.machine.ram().copy_in(range, &pages).unwrap();
        };
        self.machine.ram().populated(copy).unwrap();
        heir.machine.restore(&blob).unwrap();
        heir
    }
}

fn until(what: &str, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < LONG, "{what}: it does not come");
        std::thread::yield_now();
    }
}

fn run(kind: MachineKind) {
    let _one_at_a_time = {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    };
    let disk = MemoryDisk::new(DISK);
    let source = Rig::new(kind, &disk, Role::Owner);
    source.machine.boot().unwrap();
    source.machine.resume().unwrap();
    assert_eq!(
        source.events.recv_timeout(LONG),
        Ok(MachineEvent::WorkloadReady)
    );
    source.wait_answers(500);
    source.assert_right();

    disk.refuse_cancel(true);
    disk.stall(true);
    until("both queues are full", || disk.stalled().len() == 16);
    source.machine.pause().unwrap();
    let error = source.machine.save().unwrap_err();
    assert!(matches!(error, MachineError::State(_)), "{error}");
    let held = source.disks().hold();
    assert_eq!((held.in_flight, held.jobs.len()), (16, 16));
    assert!(held.unsettled > 0);
    let heir = source.moved(kind, &disk);
    assert_eq!(heir.disks().adopted(), held.jobs);
    source.machine.stop();
    disk.stall(false);
    heir.machine.resume().unwrap();
    let fences = u64::from(held.unsettled);
    assert_eq!(heir.disks().stats().fences, fences);

    // The source's writes land now, under the new owner's eyes.
    let mut late = disk.stalled();
    late.reverse();
    for job in late {
        assert!(disk.release(job.session, job.id, None));
        if job.kind.changes_disk() {
            match source.io.recv_timeout(LONG).unwrap() {
                IoEvent::Settled(settlement) => heir.disks().settle(&[settlement]),
                other @ IoEvent::Completed(_) => panic!("{other:?}"),
            }
        }
    }
    for _ in &held.jobs {
        let event = heir.io.recv_timeout(LONG).unwrap();
        assert!(matches!(event, IoEvent::Completed(_)), "{event:?}");
    }
    heir.wait_answers(500);
    heir.assert_right();
    disk.wait_closed(0);

    // A move that does not come about.
    heir.machine.pause().unwrap();
    let _ = heir.disks().hold();
    heir.machine.resume().unwrap();
    heir.wait_answers(500);
    heir.assert_right();
    heir.machine.stop();
    disk.wait_closed(1);
}

#[test]
fn a_process_machine_moves_with_writes_in_flight() {
    run(MachineKind::Process);
}

#[test]
fn kvm_a_machine_moves_with_writes_in_flight() {
    let kvm = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if kvm.is_err() {
        println!("SKIPPED (no /dev/kvm)");
        return;
    }
    run(MachineKind::Kvm);
}
