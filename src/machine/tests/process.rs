//! The process machine: its workloads verify, also after they have moved, and nothing that is
//! wrong with configuration, order of calls, state or RAM does more than give an error.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_guest::abi;
use vmferry_machine::{
    Boot, Console, EventSink, Machine, MachineConfig, MachineError, MachineEvent, MachineKind,
    MachineState, Role, create,
};
use vmferry_protocol::PageRange;
use vmferry_tracker::{TrackerError, TrackerKind};

const KINDS: [&str; 5] = ["idle", "dense", "sparse", "readmostly", "rewrite-same"];
/// Only a test that fails waits for so long.
const LONG: Duration = Duration::from_secs(120);

/// The tests share a process whose threads and descriptors one of them counts: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(cmdline: &str, vcpus: u32) -> MachineConfig {
    MachineConfig {
        kind: MachineKind::Process,
        ram_bytes: 16 << 20,
        vcpus,
        boot: Boot::Workload {
            cmdline: format!("ws-mib=2 fill-mib=4 {cmdline}"),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: Vec::new(),
    }
}

struct Rig {
    machine: Arc<dyn Machine>,
    events: Receiver<MachineEvent>,
}

impl Rig {
    fn new(config: &MachineConfig) -> Self {
        let (sender, events) = channel();
        let sink: EventSink = Arc::new(move |event| drop(sender.send(event)));
        let machine = create(config, sink, Role::Owner).unwrap();
        assert_eq!(machine.state(), MachineState::Created);
        Self { machine, events }
    }

    fn running(config: &MachineConfig) -> Self {
        let rig = Self::new(config);
        rig.machine.boot().unwrap();
        rig.machine.resume().unwrap();
        assert_eq!(rig.event(), MachineEvent::WorkloadReady);
        rig
    }

    fn event(&self) -> MachineEvent {
        self.events.recv_timeout(LONG).expect("an event")
    }

    /// The result of each vCPU.
    fn verify(&self) -> Vec<u32> {
        self.machine.workload().unwrap().verify();
        let vcpus = self.machine.config().vcpus;
        let mut results = BTreeMap::new();
        while results.len() < vcpus as usize {
            match self.event() {
                MachineEvent::Verified { vcpu, result } => {
                    assert_eq!(results.insert(vcpu, result), None, "vCPU {vcpu} twice");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(results.keys().copied().eq(0..vcpus));
        results.into_values().collect()
    }

    fn assert_right(&self) {
        let all_right = vec![abi::VERIFY_OK; self.machine.config().vcpus as usize];
        assert_eq!(self.verify(), all_right, "{:?}", self.machine);
    }

    /// Work of each vCPU by its last heartbeat; it never went backward.
    fn work(&self) -> Vec<u64> {
        let beats = self.machine.workload().unwrap().beats();
        for of_one in &beats {
            assert!(of_one.is_sorted_by_key(|b| b.work));
            assert!(of_one.is_sorted_by_key(|b| b.time_ns));
        }
        beats.iter().map(|b| b.last().unwrap().work).collect()
    }

    /// What a migration does: saves the paused machine, and makes another of it.
    fn moved(&self) -> Self {
        let blob = self.machine.save().unwrap();
        let other = Self::new(self.machine.config());
        copy_ram(&*self.machine, &*other.machine);
        other.machine.restore(&blob).unwrap();
        assert_eq!(other.machine.state(), MachineState::Paused);
        other
    }
}

fn copy_ram(from: &dyn Machine, to: &dyn Machine) {
    let copy = |range: PageRange| {
        let mut page = vec![0; range.bytes() as usize];
        from.ram().copy_out(range, &mut page).unwrap();
        to.ram().copy_in(range, &page).unwrap();
    };
    from.ram().populated(copy).unwrap();
}

fn contents(machine: &dyn Machine) -> Vec<u8> {
    let range = machine.ram().regions()[0].range;
    let mut bytes = vec![0; range.bytes() as usize];
    machine.ram().copy_out(range, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_workload_verifies() {
    let _alone = alone();
    for (kind, vcpus) in KINDS.iter().flat_map(|k| [(k, 1), (k, 4)]) {
        let rig = Rig::running(&config(&format!("workload={kind}"), vcpus));
        rig.assert_right();
        rig.assert_right();
        let worked = rig.work().iter().all(|&w| w > 0);
        assert_eq!(worked, *kind != "idle");
        rig.machine.stop();
        assert_eq!(rig.machine.state(), MachineState::Stopped);
    }
}

#[test]
fn a_disk_that_is_not_there_is_told_and_nothing_hangs() {
    let _alone = alone();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut config = config("workload=dense disk-depth=8 disk-mib=1", 2);
    config.debugcon = Console::File(log.path().to_owned());
    let rig = Rig::running(&config);
    assert_eq!(rig.verify(), [abi::VERIFY_DISK; 2]);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("there is no disk"), "{said}");
    assert_eq!(said.lines().count(), 1);
    rig.machine.pause().unwrap();
    let next = rig.moved();
    next.machine.resume().unwrap();
    assert_eq!(next.verify(), [abi::VERIFY_DISK; 2]);
}

#[test]
fn a_rate_is_kept_to_and_still_verifies() {
    let _alone = alone();
    let rig = Rig::running(&config("workload=dense rate=50000", 2));
    rig.assert_right();
    // Whole quotas only.
    assert!(rig.work().iter().all(|w| w % 50 == 0));
}

#[test]
fn a_workload_goes_on_where_it_was_after_three_moves() {
    let _alone = alone();
    for (kind, vcpus) in KINDS.iter().flat_map(|k| [(k, 1), (k, 4)]) {
        let mut rig = Rig::running(&config(&format!("workload={kind} stride=3"), vcpus));
        for _ in 0..3 {
            rig.machine.pause().unwrap();
            let before = rig.work();
            let next = rig.moved();
            assert_eq!(rig.machine.state(), MachineState::Paused);
            assert_eq!(rig.work(), before, "nothing runs at the source");
            next.machine.resume().unwrap();
            next.assert_right();
            for (after, before) in next.work().iter().zip(before) {
                assert!(*after >= before, "{kind}: {after} after {before}");
            }
            // The source can go on, too, as after a migration that failed.
            rig.machine.resume().unwrap();
            rig.assert_right();
            rig = next;
        }
    }
}

#[test]
fn a_workload_that_moves_while_it_fills_is_ready_once() {
    let _alone = alone();
    let first = Rig::new(&config("workload=sparse fill-mib=8", 4));
    first.machine.boot().unwrap();
    first.machine.resume().unwrap();
    first.machine.pause().unwrap();
    let was_ready = first.machine.workload().unwrap().is_ready();
    let second = first.moved();
    second.machine.resume().unwrap();
    if !was_ready {
        assert_eq!(second.event(), MachineEvent::WorkloadReady);
    }
    second.assert_right();
}

#[test]
fn a_command_not_yet_taken_moves_too() {
    let _alone = alone();
    let first = Rig::running(&config("workload=dense", 2));
    first.machine.pause().unwrap();
    first.machine.workload().unwrap().verify();
    let second = first.moved();
    second.machine.resume().unwrap();
    for _ in 0..2 {
        let event = second.event();
        assert!(
            matches!(event, MachineEvent::Verified { result: 0, .. }),
            "{event:?}"
        );
    }
}

#[test]
fn nothing_writes_to_ram_while_paused_however_often() {
    let _alone = alone();
    let rig = Rig::running(&config("workload=sparse", 4));
    for round in 0..200 {
        rig.machine.pause().unwrap();
        rig.machine.pause().unwrap();
        assert_eq!(rig.machine.state(), MachineState::Paused);
        if round % 20 == 0 {
            let before = contents(&*rig.machine);
            std::thread::yield_now();
            assert!(contents(&*rig.machine) == before);
        }
        rig.machine.resume().unwrap();
        rig.machine.resume().unwrap();
    }
    rig.assert_right();
    // One that sleeps most of the time stands at once, too.
    let idle = Rig::running(&config("workload=idle", 8));
    for _ in 0..200 {
        idle.machine.pause().unwrap();
        idle.machine.resume().unwrap();
    }
    idle.assert_right();
}

#[test]
fn what_it_writes_is_seen_by_a_tracker() {
    let _alone = alone();
    let rig = Rig::new(&config("workload=dense", 1));
    let no_kvm = rig.machine.tracker(TrackerKind::KvmLog);
    assert!(matches!(no_kvm, Err(TrackerError::NeedsKvm(_))));
    let tracker = match rig.machine.tracker(TrackerKind::WpAsync) {
        Ok(tracker) => tracker,
        Err(e) => return println!("not tested: {e}"),
    };
    tracker.start().unwrap();
    rig.machine.boot().unwrap();
    rig.machine.resume().unwrap();
    assert_eq!(rig.event(), MachineEvent::WorkloadReady);
    let arena = abi::ARENA_GPA / 4096;
    let mut seen = false;
    tracker.harvest(&mut |r| seen |= r.contains(arena)).unwrap();
    assert!(seen, "the page of states is always written");
}

#[test]
fn a_page_that_moved_wrongly_is_found() {
    let _alone = alone();
    let first = Rig::running(&config("workload=readmostly", 1));
    first.machine.pause().unwrap();
    let second = first.moved();
    let page = abi::ARENA_GPA / 4096 + 512 + 700;
    let range = PageRange::new(page, 1);
    let mut bytes = vec![0; 4096];
    second.machine.ram().copy_out(range, &mut bytes).unwrap();
    bytes[1234] ^= 1;
    second.machine.ram().copy_in(range, &bytes).unwrap();
    second.machine.resume().unwrap();
    assert_eq!(second.verify(), [701]);
}

#[test]
fn garbled_ram_harms_nothing_but_the_result() {
    let _alone = alone();
    for kind in KINDS {
        let first = Rig::running(&config(&format!("workload={kind}"), 4));
        first.machine.pause().unwrap();
        for fill in [0xff, 0x7f, 0x01] {
            let second = first.moved();
            let states = PageRange::new(abi::ARENA_GPA / 4096, 3);
            let garbage = vec![fill; states.bytes() as usize];
            second.machine.ram().copy_in(states, &garbage).unwrap();
            second.machine.resume().unwrap();
            second.verify();
            second.machine.pause().unwrap();
            let ram = contents(&*second.machine);
            assert!(ram[..abi::ARENA_GPA as usize].iter().all(|&b| b == 0));
            assert!(ram[10 << 20..].iter().all(|&b| b == 0));
        }
    }
}

#[test]
fn hostile_state_is_refused() {
    let _alone = alone();
    let config_of_two = config("workload=dense", 2);
    let rig = Rig::running(&config_of_two);
    rig.machine.pause().unwrap();
    let blob = rig.machine.save().unwrap();
    let refused = |config: &MachineConfig, blob: &[u8]| {
        let other = Rig::new(config);
        match other.machine.restore(blob) {
            Err(MachineError::State(why)) => assert!(!why.is_empty()),
            other => panic!("{other:?} for {blob:02x?}"),
        }
        assert_eq!(other.machine.state(), MachineState::Created);
    };
    for len in 0..blob.len() {
        refused(&config_of_two, &blob[..len]);
    }
    refused(&config_of_two, &[&blob[..], &[0]].concat());
    refused(&config_of_two, &[0xff; 64]);
    refused(&config_of_two, &vec![0; 1 << 20]);
    // A list that claims to be longer than all memory.
    let huge = [&blob[..blob.len() / 2], &[0xff; 9], &[0x01; 64]].concat();
    refused(&config_of_two, &huge);
    for other in [
        config("workload=dense", 1),
        config("workload=dense seed=7", 2),
        config("workload=sparse", 2),
        MachineConfig {
            ram_bytes: 32 << 20,
            ..config_of_two.clone()
        },
    ] {
        refused(&other, &blob);
    }
    // Whatever a bit flip does, it is an error or a state that can be run.
    for bit in 0..blob.len() * 8 {
        let mut garbled = blob.clone();
        garbled[bit / 8] ^= 1 << (bit % 8);
        let other = Rig::new(&config_of_two);
        match other.machine.restore(&garbled) {
            Ok(()) => {
                other.machine.resume().unwrap();
                other.machine.pause().unwrap();
            }
            Err(MachineError::State(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_wrong_order_is_an_error() {
    let _alone = alone();
    let order = |result: Result<(), MachineError>, text: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, MachineError::Order { .. }));
        assert_eq!(error.to_string(), text);
    };
    let rig = Rig::new(&config("workload=idle", 1));
    let m = &rig.machine;
    let not_booted = |what| format!("the machine is not booted: {what} is not possible");
    order(m.resume(), &not_booted("resuming"));
    order(m.pause(), &not_booted("pausing"));
    order(m.save().map(drop), &not_booted("saving"));
    m.boot().unwrap();
    let blob = m.save().unwrap();
    order(m.boot(), "the machine is paused: booting is not possible");
    m.resume().unwrap();
    assert_eq!(m.state(), MachineState::Running);
    let running = "the machine is running: saving is not possible";
    order(m.save().map(drop), running);
    m.stop();
    m.stop();
    assert_eq!(m.state(), MachineState::Stopped);
    for result in [m.resume(), m.pause(), m.boot(), m.restore(&blob)] {
        assert!(matches!(result, Err(MachineError::Order { .. })));
    }
}

#[test]
fn a_thread_that_panics_is_a_crash() {
    let _alone = alone();
    let (sender, events) = channel();
    let sink: EventSink = Arc::new(move |event| {
        let fatal = event == MachineEvent::WorkloadReady;
        sender.send(event).unwrap();
        assert!(!fatal, "the sink's fault");
    });
    let machine = create(&config("workload=dense", 4), sink, Role::Owner).unwrap();
    machine.boot().unwrap();
    machine.resume().unwrap();
    let next = || events.recv_timeout(LONG).unwrap();
    assert_eq!(next(), MachineEvent::WorkloadReady);
    let MachineEvent::Crashed { detail } = next() else {
        panic!("no crash")
    };
    assert!(detail.contains("the sink's fault"), "{detail}");
    assert_eq!(machine.state(), MachineState::Crashed(detail.clone()));
    let result = machine.pause();
    assert!(matches!(result, Err(MachineError::Order { .. })));
    machine.stop();
    assert_eq!(machine.state(), MachineState::Crashed(detail));
}

#[test]
fn stopped_and_dropped_machines_leave_nothing() {
    let _alone = alone();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let ours = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok());
        names.filter(|n| n.starts_with("vcpu")).count()
    };
    let all_gone = || {
        // A thread that has been joined is in the list for a moment more.
        while ours() > 0 {
            std::thread::yield_now();
        }
    };
    let cycle = |stop: bool| {
        all_gone();
        let rig = Rig::running(&config("workload=dense", 4));
        assert_eq!(ours(), 4);
        rig.machine.ram().populated(|_| ()).unwrap();
        if stop {
            rig.machine.stop();
        }
    };
    cycle(true);
    let before = descriptors();
    for round in 0..20 {
        cycle(round % 2 == 0);
    }
    all_gone();
    assert_eq!(descriptors(), before);
}

#[test]
fn configurations_that_cannot_be_say_what_to_do() {
    let _alone = alone();
    let refused = |config: &MachineConfig, hint: &str| {
        let sink: EventSink = Arc::new(|_| ());
        match create(config, sink, Role::Owner) {
            Err(MachineError::Config(text)) => {
                assert!(text.contains(hint) && !text.contains('\n'), "{text}");
            }
            other => panic!("{other:?}"),
        }
    };
    refused(&config("", 0), "1 to 8");
    refused(&config("", 9), "1 to 8");
    refused(&config("fill-mib=12", 1), "needs 18 MiB");
    refused(&config("ws-mib=99999999", 1), "lower fill-mib=");
    refused(
        &config("fill-mib=18446744073709551615", 1),
        "lower fill-mib=",
    );
    let kernel = MachineConfig {
        boot: Boot::Kernel {
            kernel: "vmlinux".into(),
            initrd: None,
            cmdline: String::new(),
        },
        ..config("", 1)
    };
    refused(&kernel, "/dev/kvm");
    let odd = MachineConfig {
        ram_bytes: (2 << 20) + 1,
        ..config("", 1)
    };
    assert!(matches!(
        create(&odd, Arc::new(|_| ()), Role::Owner),
        Err(MachineError::Memory(_))
    ));
    // What is the machine's to say cannot be said on the command line.
    Rig::running(&config("workload=dense vcpus=7 tsc-khz=5", 2)).assert_right();
}
