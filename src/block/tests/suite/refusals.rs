//! What cannot be done fails, and nothing else happens.

use vmferry_block::{Buffers, Extent, JobEnd, JobKind};

use super::DISK;
use crate::common::Rig;

fn fails(end: JobEnd) {
    assert!(matches!(end, JobEnd::Failed(errno) if errno > 0), "{end:?}");
}

pub(crate) fn nonsense(rig: &mut Rig) {
    let page: &[(u64, u32)] = &[(0, 4096)];
    for offset in [DISK, DISK - 512, 1, u64::MAX, u64::MAX - 4095] {
        for kind in [JobKind::Read, JobKind::Write] {
            fails(rig.run(kind, offset, page));
        }
    }
    for (offset, len) in [(DISK, 512), (0, DISK + 512), (512, u64::MAX), (0, 100)] {
        fails(rig.run_range(JobKind::Discard, offset, len));
        fails(rig.run_range(JobKind::WriteZeroes { unmap: true }, offset, len));
    }
    // Less memory than disk, and the other way.
    for len in [512, 8192] {
        let id = rig.submit_buffers(JobKind::Read, Extent::new(0, len), rig.buffers(page));
        fails(rig.end(id));
    }
    let id = rig.submit_buffers(JobKind::Write, Extent::new(0, 512), Buffers::none());
    fails(rig.end(id));
    assert_eq!(rig.read_disk(0, 4096), [0; 4096]);
}

pub(crate) fn read_only(rig: &mut Rig) {
    assert!(rig.disk.geometry().read_only);
    assert!(rig.disk.may_move().is_ok());
    rig.fill(&[(0, 4096)], 1);
    for kind in [
        JobKind::Write,
        JobKind::Discard,
        JobKind::WriteZeroes { unmap: true },
    ] {
        let end = match kind {
            JobKind::Write => rig.run(kind, 0, &[(0, 4096)]),
            _ => rig.run_range(kind, 0, 4096),
        };
        let refused = [libc::EROFS, libc::EPERM].map(JobEnd::Failed);
        assert!(refused.contains(&end), "{kind:?}: {end:?}");
    }
    assert_eq!(rig.run_range(JobKind::Flush, 0, 0), JobEnd::Done);
    assert_eq!(rig.read_disk(0, 4096), [0; 4096]);
}
