//! What is taken back has not happened, and everything ends once.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmferry_block::{JobEnd, JobId, JobKind};

use crate::common::{Rig, pattern, until};

const COUNT: u64 = 1800;

pub(crate) fn each_ends_once(rig: &mut Rig) {
    rig.disk.hold(true);
    for i in 0..COUNT {
        rig.fill(&[(i * 4096, 4096)], i as u8);
    }
    let ids: Vec<JobId> = (0..COUNT)
        .map(|i| rig.submit(JobKind::Write, i * 4096, &[(i * 4096, 4096)]))
        .collect();
    let flush = rig.submit_range(JobKind::Flush, 0, 0);
    // The last first: those are likely to be waiting still. And twice is as good as once.
    for id in ids.iter().rev().chain([&flush]).chain(&ids) {
        rig.disk.cancel(*id);
    }
    let ends = rig.ends(ids.len() + 1);
    let ends: BTreeMap<JobId, JobEnd> = ends.iter().map(|e| (e.id, e.end)).collect();
    assert_eq!(ends.len(), ids.len() + 1, "an operation has ended twice");
    rig.disk.hold(false);
    let now: Vec<u8> = (0..8)
        .flat_map(|i| rig.read_disk(i << 20, 1 << 20))
        .collect();
    for (i, (id, now)) in ids.iter().zip(now.chunks(4096)).enumerate() {
        match ends[id] {
            JobEnd::Done => assert!(now == pattern(4096, i as u8), "{i} was lost"),
            JobEnd::Cancelled => assert!(now == [0; 4096], "{i} has happened"),
            JobEnd::Unknown => {}
            JobEnd::Failed(errno) => panic!("{i} has failed: {errno}"),
        }
    }
    // It is in working order.
    let end = rig.run(JobKind::Write, 0, &[(0, 4096)]);
    assert_eq!(end, JobEnd::Done);
}

pub(crate) fn of_what_is_not_there(rig: &mut Rig) {
    rig.disk.cancel(JobId(77));
    let id = rig.submit(JobKind::Read, 0, &[(0, 4096)]);
    assert_eq!(rig.end(id), JobEnd::Done);
    rig.disk.cancel(id);
    let id = rig.submit(JobKind::Read, 0, &[(0, 4096)]);
    assert_eq!(rig.end(id), JobEnd::Done);
}

/// Memory stays mapped for what is in flight, and is given back when it has ended.
pub(crate) fn drop_in_flight(mut rig: Rig) {
    let ram = Arc::downgrade(&rig.ram);
    for i in 0..300 {
        let kind = if i % 2 == 0 {
            JobKind::Read
        } else {
            JobKind::Write
        };
        let odd = if i % 5 == 0 { 16 } else { 0 };
        rig.submit(kind, i * 4096, &[(i * 8192 + odd, 4096)]);
    }
    drop(rig);
    until("memory is given back", || ram.strong_count() == 0);
}
