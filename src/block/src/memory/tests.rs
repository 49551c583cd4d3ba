use vmferry_memory::GuestRam;

use super::*;
use crate::Buffers;

const AT: Extent = Extent::new(4096, 512);

fn operation(ram: &Arc<GuestRam>, id: u64, kind: JobKind) -> Operation {
    Operation {
        id: JobId(id),
        kind,
        extent: AT,
        buffers: Buffers::new(ram, [(0, 512)]).unwrap(),
    }
}

fn fill(ram: &Arc<GuestRam>, byte: u8) {
    let buffers = Buffers::new(ram, [(0, 512)]).unwrap();
    buffers.copy_in(0, &[byte; 512]);
}

fn reaped(backend: &mut MemoryBackend) -> Vec<(u64, JobEnd)> {
    let mut ended = Vec::new();
    backend.reap(&mut ended);
    ended.iter().map(|c| (c.id.0, c.end)).collect()
}

#[test]
fn two_sessions_see_one_content_and_a_stalled_write_lands_when_it_is_released() {
    let (disk, ram) = (
        MemoryDisk::new(1 << 16),
        Arc::new(GuestRam::new(2 << 20).unwrap()),
    );
    let (mut old, mut new) = (disk.open().unwrap(), disk.open().unwrap());
    disk.stall(true);
    fill(&ram, 1);
    old.submit(operation(&ram, 0, JobKind::Write));
    assert_eq!(reaped(&mut old), []);
    disk.stall(false);
    let other = Arc::new(GuestRam::new(2 << 20).unwrap());
    fill(&other, 2);
    new.submit(operation(&other, 0, JobKind::Write));
    assert_eq!(reaped(&mut new), [(0, JobEnd::Done)]);
    assert_eq!(disk.content(4096, 512), [2; 512]);
    assert!(disk.release(0, JobId(0), None) && !disk.release(0, JobId(0), None));
    assert_eq!(reaped(&mut old), [(0, JobEnd::Done)]);
    assert_eq!(disk.content(4096, 512), [1; 512]);
    let sessions: Vec<Session> = disk.wait_landed(2).iter().map(|s| s.session).collect();
    assert_eq!(sessions, [1, 0]);
}

#[test]
fn what_is_stalled_is_cancelled_refused_failed_or_lost_with_its_session() {
    let (disk, ram) = (
        MemoryDisk::new(1 << 16),
        Arc::new(GuestRam::new(2 << 20).unwrap()),
    );
    let mut backend = disk.open().unwrap();
    disk.stall(true);
    for id in 0..4 {
        backend.submit(operation(&ram, id, JobKind::Discard));
    }
    backend.cancel(JobId(0));
    disk.refuse_cancel(true);
    backend.cancel(JobId(1));
    disk.release(0, JobId(2), Some(libc::EIO));
    let ends = [(0, JobEnd::Cancelled), (2, JobEnd::Failed(libc::EIO))];
    assert_eq!(reaped(&mut backend), ends);
    disk.end_session(0);
    assert_eq!(disk.stalled().len(), 2, "asked for again");
    backend.hold(true);
    disk.end_session(0);
    assert_eq!(
        reaped(&mut backend),
        [(1, JobEnd::Unknown), (3, JobEnd::Unknown)]
    );
    drop(backend);
    assert_eq!(disk.is_open(0), (false, false));
}
