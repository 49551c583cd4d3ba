//! Devices that do wrong.

use super::Rig;
use super::model::{MAGIC, STATUS};
use super::plan::{Fault, Plan};
use crate::abi;

/// What is said of it, and what makes a device so.
type Quirk = (&'static str, fn(&mut Rig));

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// Runs until what is planned has happened, then settles. Where a later write made it good
/// before anybody could see it, tries again with another seed.
fn settle(line: &str, kind: u32, fault: Fault) -> (Vec<Option<u32>>, Rig) {
    for seed in 0..20 {
        let (results, rig) = settle_once(&format!("{line} seed={seed}"), kind, fault);
        if !rig.host.model.plan.masked {
            return (results, rig);
        }
    }
    panic!("{fault:?} is always made good");
}

fn settle_once(line: &str, kind: u32, fault: Fault) -> (Vec<Option<u32>>, Rig) {
    let mut rig = Rig::new(line);
    rig.steps(100);
    rig.plan(Plan::of(kind, fault));
    for _ in 0..3000 {
        if rig.host.model.plan.happened {
            break;
        }
        rig.steps(1);
    }
    assert!(rig.host.model.plan.happened, "{fault:?} did not happen");
    let results = rig.command(abi::COMMAND_VERIFY_SETTLED, 3000);
    (results, rig)
}

#[test]
fn every_fault_is_found_and_said() {
    use Fault::{
        BadStatus, FlippedBit, LateWrite, Length, LostWrite, NoData, NoStatus, OtherBlock, OtherId,
        StaleRead, TornWrite, Twice,
    };
    for (kind, fault, says) in [
        (READ, Twice, "not in flight|in flight|status 255"),
        (WRITE, Twice, "not in flight|in flight|status 255"),
        (FLUSH, Twice, "not in flight|in flight|status 255"),
        (WRITE, OtherId, "not in flight"),
        (READ, Length, "length 4096, expected 4097"),
        (WRITE, Length, "length 0, expected 1"),
        (FLUSH, Length, "length 0, expected 1"),
        (READ, NoStatus, "status 255"),
        (WRITE, NoStatus, "status 255"),
        (FLUSH, BadStatus, "status 2, expected 0"),
        (READ, NoData, "the run's number"),
        (READ, StaleRead, "generation|the run's number"),
        (READ, OtherBlock, "the block's number|the run's number"),
        (WRITE, LostWrite, "generation|the run's number"),
        (WRITE, TornWrite, "generation|the run's number"),
        (WRITE, FlippedBit, "soundness of its sum is 0x0"),
        (WRITE, LateWrite, "generation"),
    ] {
        for line in [
            "disk-depth=1 disk-flush=4",
            "disk-depth=24",
            "disk-depth=8 vcpus=3",
        ] {
            let (results, mut rig) = settle(line, kind, fault);
            let name = format!("{fault:?} of {kind}, {line}: {:?}", rig.host.said);
            assert!(results.contains(&Some(abi::VERIFY_DISK)), "{name}");
            let said = says.split('|').any(|s| rig.host.said[0].contains(s));
            assert!(said, "{name}");
            // It is not forgotten.
            let again = rig.command(abi::COMMAND_VERIFY, 3000);
            assert_eq!(again, results, "{name}");
        }
    }
}

#[test]
fn a_request_that_never_comes_back_is_missed() {
    for kind in [READ, WRITE, FLUSH] {
        let (results, mut rig) = settle("disk-depth=8", kind, Fault::Dropped);
        assert_eq!(results, [None]);
        let dropped = rig.host.model.plan.dropped.pop().expect("one");
        // It comes after all.
        rig.host.model.pending.push(dropped);
        for _ in 0..3000 {
            rig.steps(1);
        }
        assert_eq!(rig.host.results, [Some(abi::VERIFY_OK)]);
    }
}

#[test]
fn a_device_that_has_given_up_is_noticed_where_it_is_waited_for() {
    for command in [abi::COMMAND_VERIFY, abi::COMMAND_VERIFY_SETTLED] {
        let mut rig = Rig::new("disk-depth=8");
        rig.steps(100);
        rig.plan(Plan::of(WRITE, Fault::Dropped));
        while !rig.host.model.plan.happened {
            rig.steps(1);
        }
        rig.host.model.pending.clear();
        rig.host.model.falsified.push((STATUS, 15 | 64));
        let results = rig.command(command, 3000);
        assert_eq!(results, [Some(abi::VERIFY_DISK)]);
        assert!(
            rig.host.said[0].contains("wants to be reset"),
            "{:?}",
            rig.host.said
        );
    }
}

#[test]
fn an_overlap_that_goes_wrong_is_found() {
    for fault in [Fault::LateWrite, Fault::LostWrite, Fault::FlippedBit] {
        let mut found = 0;
        for seed in 0..8 {
            let line = format!("disk-depth=8 disk-overlap=40 seed={seed}");
            let (results, _) = settle_once(&line, WRITE, fault);
            found += u32::from(results == [Some(abi::VERIFY_DISK)]);
        }
        // What concurrent writes hide is not wrong.
        assert!(found >= 2, "{fault:?} found {found} times");
    }
}

#[test]
fn a_device_that_is_none_or_another_is_reported_by_every_vcpu() {
    let quirks: [Quirk; 11] = [
        ("no disk", |r| {
            r.host.model.falsified.push((MAGIC, u32::MAX))
        }),
        ("version", |r| r.host.model.falsified.push((4, 1))),
        ("no disk", |r| r.host.model.falsified.push((8, 0))),
        ("kind", |r| r.host.model.falsified.push((8, 1))),
        ("reset", |r| r.host.model.falsified.push((STATUS, 4))),
        ("lower feature", |r| r.host.model.features[0] = 1 << 12),
        ("lower feature", |r| r.host.model.features[0] = 1 << 9),
        ("read-only", |r| r.host.model.features[0] |= 1 << 5),
        ("upper feature", |r| r.host.model.features[1] = 0),
        ("size in sectors", |r| {
            r.host.model.disk.truncate(4096 * 255)
        }),
        ("size of a queue", |r| {
            r.host.model.falsified.push((0x34, 8))
        }),
    ];
    for (says, quirk) in quirks {
        let mut rig = Rig::make("disk-depth=8 vcpus=2");
        quirk(&mut rig);
        rig.begin();
        assert_eq!(rig.host.said.len(), 1, "{says}");
        assert!(rig.host.said[0].contains(says), "{:?}", rig.host.said);
        let results = rig.command(abi::COMMAND_VERIFY_SETTLED, 200);
        assert_eq!(results, [Some(abi::VERIFY_DISK); 2], "{says}");
        assert_eq!(rig.host.model.taken, 0);
    }
}

#[test]
fn a_device_with_too_few_queues_is_reported() {
    let mut rig = Rig::make("disk-depth=8 vcpus=4");
    rig.host.model.falsified.push((0x120, 3 << 16));
    rig.begin();
    assert!(
        rig.host.said[0].contains("number of queues"),
        "{:?}",
        rig.host.said
    );
}

#[test]
fn failures_without_end_are_not_told_without_end() {
    let mut rig = Rig::new("disk-depth=8");
    rig.steps(100);
    rig.host.model.disk.fill(0);
    rig.steps(200);
    assert_eq!(rig.host.said.len(), 16);
    assert_eq!(
        rig.command(abi::COMMAND_VERIFY, 3000),
        [Some(abi::VERIFY_DISK)]
    );
}
