//! What is written is read, and the host learns of it.

use std::time::Duration;

use vmferry_block::{JobEnd, JobKind};

use super::DISK;
use crate::common::{LONG, Rig, is_ready, pattern};

pub(crate) fn geometry(rig: &mut Rig) {
    let geometry = rig.disk.geometry();
    assert_eq!(geometry.bytes, DISK);
    assert!(!geometry.read_only);
    assert!(geometry.block_size.is_power_of_two() && geometry.block_size >= 512);
    assert!(geometry.max_transfer >= 1 << 20, "{geometry:?}");
}

pub(crate) fn round_trip(rig: &mut Rig) {
    // Runs out of order, one across a huge page, on pages' bounds.
    let runs = [(0x20_0000 - 4096, 8192), (0x1000, 4096), (0x10_0000, 4096)];
    let data = rig.fill(&runs, 1);
    assert_eq!(rig.run(JobKind::Write, 12288, &runs), JobEnd::Done);
    let back = [(0x30_0000, 4096), (0x28_0000, 12288)];
    assert_eq!(rig.run(JobKind::Read, 12288, &back), JobEnd::Done);
    assert_eq!(rig.bytes(&back), data);
    // Around it nothing has changed.
    assert_eq!(rig.read_disk(8192, 4096), [0; 4096]);
    assert_eq!(rig.read_disk(12288 + 16384, 4096), [0; 4096]);
    // As much as there may be, up to the end.
    let most = rig.disk.geometry().max_transfer.min(1 << 20);
    let runs = [(0x40_0000, most)];
    let data = rig.fill(&runs, 2);
    let last = DISK - u64::from(most);
    assert_eq!(rig.run(JobKind::Write, last, &runs), JobEnd::Done);
    assert!(rig.read_disk(last, most) == data);
}

pub(crate) fn unaligned_memory(rig: &mut Rig) {
    let block = u64::from(rig.disk.geometry().block_size);
    let cases: [&[(u64, u32)]; 4] = [
        &[(0x1001, 4096)],
        &[(0x1800, 1), (0x2003, 4094), (0x4fff, 1)],
        &[(0x5010, 512), (0x7ff0, 3584)],
        &[(0x10_0007, 700_416)],
    ];
    for (i, runs) in cases.into_iter().enumerate() {
        let data = rig.fill(runs, i as u8);
        let at = block * (3 + i as u64);
        assert_eq!(rig.run(JobKind::Write, at, runs), JobEnd::Done, "{runs:?}");
        assert!(rig.read_disk(at, data.len() as u32) == data, "{runs:?}");
        rig.fill(runs, 0xff);
        assert_eq!(rig.run(JobKind::Read, at, runs), JobEnd::Done, "{runs:?}");
        assert!(rig.bytes(runs) == data, "{runs:?}");
    }
    // Reads of any sectors.
    let data = pattern(700_416, 3);
    assert_eq!(rig.read_disk(block * 6 + 512, 1024), data[512..1536]);
}

pub(crate) fn zeros(rig: &mut Rig) {
    let runs = [(0, 1 << 20)];
    let geometry = rig.disk.geometry().clone();
    for (i, unmap) in [false, true].into_iter().enumerate() {
        if !geometry.write_zeroes {
            continue;
        }
        let data = rig.fill(&runs, 5);
        assert_eq!(rig.run(JobKind::Write, 0, &runs), JobEnd::Done);
        let kind = JobKind::WriteZeroes { unmap };
        let (at, len) = (65536 * (1 + i as u64), 524_288);
        assert_eq!(rig.run_range(kind, at, len), JobEnd::Done);
        let (start, end) = (at as usize, (at + len) as usize);
        let now = rig.read_disk(0, 1 << 20);
        assert!(now[start..end].iter().all(|b| *b == 0));
        assert!(now[..start] == data[..start] && now[end..] == data[end..]);
    }
    let end = rig.run_range(JobKind::Discard, 0, DISK);
    if geometry.discard {
        assert_eq!(end, JobEnd::Done);
    } else {
        assert!(matches!(end, JobEnd::Failed(_)), "{end:?}");
    }
}

pub(crate) fn flush(rig: &mut Rig) {
    assert_eq!(rig.run_range(JobKind::Flush, 0, 0), JobEnd::Done);
    let runs = [(0, 4096)];
    rig.fill(&runs, 9);
    assert_eq!(rig.run(JobKind::Write, 0, &runs), JobEnd::Done);
    assert_eq!(rig.run_range(JobKind::Flush, 0, 0), JobEnd::Done);
}

pub(crate) fn many_in_flight(rig: &mut Rig) {
    const COUNT: u64 = 1500;
    for i in 0..COUNT {
        rig.fill(&[(i * 4096, 4096)], i as u8);
    }
    let mut written: Vec<_> = (0..COUNT)
        .map(|i| rig.submit(JobKind::Write, i * 4096, &[(i * 4096, 4096)]))
        .collect();
    let ends = rig.ends(COUNT as usize);
    assert!(ends.iter().all(|e| e.end == JobEnd::Done));
    let mut ended: Vec<_> = ends.iter().map(|e| e.id).collect();
    ended.sort_unstable();
    written.sort_unstable();
    assert_eq!(ended, written);
    // Reads, some of them by memory that is not aligned, all to other places.
    let place = |i: u64| 0x100_0000 + i * 8192 + if i.is_multiple_of(3) { 8 } else { 0 };
    for i in 0..COUNT {
        rig.submit(JobKind::Read, i * 4096, &[(place(i), 4096)]);
    }
    assert!(
        rig.ends(COUNT as usize)
            .iter()
            .all(|e| e.end == JobEnd::Done)
    );
    for i in 0..COUNT {
        assert!(
            rig.bytes(&[(place(i), 4096)]) == pattern(4096, i as u8),
            "{i}"
        );
    }
}

pub(crate) fn reads_are_noted(rig: &mut Rig) {
    rig.noted();
    for (runs, frames) in [
        ([(0x3000, 4096), (0x9000, 8192)], vec![3, 9, 10]),
        ([(0x3800, 4096), (0x20004, 4096)], vec![3, 4, 32, 33]),
    ] {
        assert_eq!(rig.run(JobKind::Read, 0, &runs), JobEnd::Done);
        assert_eq!(rig.noted(), frames);
        // A write only reads there.
        assert_eq!(rig.run(JobKind::Write, 0, &runs), JobEnd::Done);
        assert!(rig.noted().is_empty());
    }
}

pub(crate) fn readiness(rig: &mut Rig) {
    assert!(!is_ready(rig.disk.as_ref(), Duration::ZERO));
    let id = rig.submit(JobKind::Read, 0, &[(0, 4096)]);
    assert!(is_ready(rig.disk.as_ref(), LONG));
    assert_eq!(rig.end(id), JobEnd::Done);
    assert!(!is_ready(rig.disk.as_ref(), Duration::ZERO));
    let mut ended = Vec::new();
    rig.disk.reap(&mut ended);
    assert_eq!(ended, []);
    // What is refused is told the same way.
    let id = rig.submit_range(JobKind::WriteZeroes { unmap: false }, DISK, 512);
    assert!(is_ready(rig.disk.as_ref(), LONG));
    assert!(matches!(rig.end(id), JobEnd::Failed(_)));
    assert!(!is_ready(rig.disk.as_ref(), Duration::ZERO));
}
