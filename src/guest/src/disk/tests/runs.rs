//! Devices that do as they must.

use super::Rig;
use crate::abi;

#[test]
fn a_right_device_is_never_accused() {
    for line in [
        "disk-depth=1",
        "disk-depth=32",
        "disk-depth=64 vcpus=4",
        "disk-depth=8 disk-overlap=50 vcpus=3",
        "disk-depth=64 disk-overlap=100 disk-write=80",
        "disk-depth=16 disk-overlap=30 workload=dense",
        "disk-depth=5 disk-write=100 disk-flush=1 workload=sparse rate=5000",
        "disk-depth=7 disk-write=0 disk-flush=0 workload=readmostly",
    ] {
        let mut rig = Rig::new(line);
        for _ in 0..3 {
            rig.steps(60);
            rig.assert_right();
        }
        let depth = rig.params.disk_depth as usize;
        assert_eq!(rig.host.model.deepest, depth, "{line}");
        assert_eq!(
            rig.host.model.together > 0,
            line.contains("overlap"),
            "{line}"
        );
        let mut all = 0;
        for vcpu in 0..rig.params.vcpus as u32 {
            let counters = rig.counters(vcpu);
            assert_eq!(rig.host.beats[vcpu as usize], counters.completed());
            assert_eq!(counters.writes > 0, rig.params.disk_write > 0, "{line}");
            assert!(counters.reads > 0 && counters.errors == 0, "{line}");
            let flushes = counters.flushes;
            match rig.params.disk_flush {
                0 => assert_eq!(flushes, 0),
                n => assert!((flushes * n).abs_diff(counters.writes) <= n, "{line}"),
            }
            all += counters.completed();
        }
        let left = u64::from(rig.host.model.taken) - all;
        assert!(left <= rig.params.vcpus * rig.params.disk_depth, "{line}");
    }
}

#[test]
fn errors_are_counted_and_their_blocks_may_be_old_new_or_torn() {
    for line in ["disk-depth=16", "disk-depth=32 disk-overlap=60 vcpus=2"] {
        let mut rig = Rig::new(line);
        rig.host.model.plan.errors = 30;
        for _ in 0..5 {
            rig.steps(100);
            rig.assert_right();
        }
        assert!(rig.counters(0).errors > 100);
    }
}

#[test]
fn a_disk_that_gives_nothing_but_errors_is_not_settled() {
    let mut rig = Rig::new("disk-depth=4");
    rig.steps(50);
    rig.host.model.plan.errors = 100;
    let results = rig.command(abi::COMMAND_VERIFY_SETTLED, 3000);
    assert_eq!(results, [Some(abi::VERIFY_DISK)]);
    assert!(
        rig.host.said[0].contains("cannot be read back"),
        "{:?}",
        rig.host.said
    );
}

#[test]
fn it_goes_on_from_ram_alone_with_requests_in_flight() {
    let mut rig = Rig::new("disk-depth=32 disk-overlap=20 vcpus=2");
    for _ in 0..10 {
        rig.steps(7);
        assert!(!rig.host.model.pending.is_empty());
        let moved = rig.memory.clone();
        let (old, bytes) = (
            rig.arena() as usize,
            rig.params.arena_pages() as usize * 4096,
        );
        let mut other = vec![[0u64; 512]; moved.len()];
        std::mem::swap(&mut rig.memory, &mut other);
        let (from, to) = (old as *const u8, rig.arena());
        // SAFETY: both arenas are of this size; `other` still holds the old one.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        drop(other);
    }
    rig.assert_right();
}

#[test]
fn a_rate_holds_and_sleeps_in_between() {
    for rate in [10, 1000, 7000] {
        let mut rig = Rig::new(&format!("disk-depth=16 disk-rate={rate}"));
        let (before, from) = (rig.host.model.taken, rig.host.tsc);
        rig.host.slept = 0;
        rig.steps(2000);
        let taken = u64::from(rig.host.model.taken - before);
        let expected = rate * (rig.host.tsc - from) / 1_000_000;
        assert!(
            taken.abs_diff(expected) <= expected / 20 + 1,
            "{taken} of {expected}"
        );
        assert!(rig.host.slept > (rig.host.tsc - from) / 4, "{rate}");
        rig.assert_right();
    }
    let mut spins = Rig::new("disk-depth=16");
    spins.steps(100);
    assert_eq!(spins.host.slept, 0);
}

#[test]
fn one_notification_for_a_batch_and_none_where_none_is_wanted() {
    let mut rig = Rig::make("disk-depth=32");
    rig.begin();
    rig.steps(50);
    let (notified, taken) = (rig.host.model.notified, rig.host.model.taken);
    assert!(
        taken > 1000 && notified * 4 < taken,
        "{notified} for {taken}"
    );
    rig.host.model.no_notify = true;
    rig.steps(2);
    let (before, taken) = (rig.host.model.notified, rig.host.model.taken);
    rig.steps(50);
    assert_eq!(rig.host.model.notified, before);
    assert!(rig.host.model.taken > taken + 1000);
    rig.assert_right();
}

#[test]
fn only_a_settled_verify_waits_for_what_is_stuck() {
    for overlap in [0, 100] {
        let mut rig = Rig::new(&format!(
            "disk-depth=8 disk-write=90 disk-overlap={overlap}"
        ));
        rig.steps(50);
        rig.host.model.stuck = vec![3, 77, 100];
        rig.steps(400);
        assert!(!rig.host.model.pending.is_empty());
        let ok = [Some(abi::VERIFY_OK)];
        assert_eq!(rig.command(abi::COMMAND_VERIFY, 3000), ok);
        assert_eq!(rig.command(abi::COMMAND_VERIFY_SETTLED, 3000), [None]);
        assert!(!rig.host.model.pending.is_empty());
        rig.host.model.stuck.clear();
        for _ in 0..3000 {
            rig.steps(1);
        }
        assert_eq!(rig.host.results, ok);
        assert_eq!(rig.host.said, [""; 0]);
        rig.assert_right();
    }
}
