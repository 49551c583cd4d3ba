//! What is particular to files, and to slow ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::fuse::{FSYNC, READ, SlowDisk, WRITE};
use common::mounts::{LoopDevice, privately};
use common::{Rig, pattern, until};
use tempfile::TempDir;
use vmferry_block::{
    BlockBackend, Caching, DiskSource, FileBackend, JobEnd, JobKind, Role, Slow, open,
};

fn image(len: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

fn rig(path: &std::path::Path, caching: Caching) -> Rig {
    Rig::new(Box::new(
        FileBackend::open(path, false, Role::Owner, caching).unwrap(),
    ))
}

#[test]
fn a_file_that_shrinks_fails_reads_beyond_its_end() {
    for caching in [Caching::Direct, Caching::Buffered] {
        let (_dir, path) = image(1 << 20);
        let mut rig = rig(&path, caching);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(300_000).unwrap();
        for (offset, runs) in [
            (524_288, [(0, 4096)]),
            (294_912, [(0x1_0000, 8192)]),
            (294_912, [(0x2_0008, 8192)]),
        ] {
            rig.noted();
            let end = rig.run(JobKind::Read, offset, &runs);
            assert_eq!(end, JobEnd::Failed(libc::EIO));
            // What came before the end may be there.
            assert!(rig.noted().contains(&(runs[0].0 / 4096)));
        }
        assert_eq!(rig.read_disk(290_816, 8192), [0; 8192]);
        // A write makes it longer again.
        let runs = [(0, 8192)];
        let data = rig.fill(&runs, 1);
        assert_eq!(rig.run(JobKind::Write, 524_288, &runs), JobEnd::Done);
        assert_eq!(rig.read_disk(524_288, 8192), data);
    }
}

#[test]
fn writes_of_less_than_a_block_are_refused_and_reads_are_not() {
    let Some(device) = LoopDevice::new() else {
        return;
    };
    let mut rig = rig(&device.path, Caching::Direct);
    let data = rig.fill(&[(0, 4096)], 4);
    assert_eq!(rig.run(JobKind::Write, 0, &[(0, 4096)]), JobEnd::Done);
    for (offset, len) in [(0, 512), (512, 4096), (0, 4608)] {
        let end = rig.run(JobKind::Write, offset, &[(0x10_0000, len)]);
        assert_eq!(end, JobEnd::Failed(libc::EINVAL));
    }
    assert_eq!(rig.read_disk(512, 1024), data[512..1536]);
}

#[test]
fn what_is_in_the_page_cache_does_not_move() {
    let (_dir, path) = image(1 << 20);
    let why = rig(&path, Caching::Buffered).disk.may_move().unwrap_err();
    assert!(
        why.contains("page cache") && why.contains("O_DIRECT"),
        "{why}"
    );
    let direct = rig(&path, Caching::Direct);
    assert_eq!(direct.disk.may_move(), Ok(()));
    // Nor does anything come to it.
    let heir = FileBackend::open(&path, false, Role::Heir, Caching::Buffered).unwrap_err();
    assert!(heir.to_string().contains("page cache"), "{heir}");
    let look = FileBackend::open(&path, false, Role::Inspector, Caching::Buffered).unwrap();
    assert!(look.may_move().is_err());
    drop(direct);
    let disk = FileBackend::open(&path, true, Role::Owner, Caching::Buffered).unwrap();
    assert_eq!(disk.may_move(), Ok(()));
}

#[test]
fn discarded_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path) = image(1 << 20);
    let mut rig = rig(&path, Caching::Direct);
    let runs = [(0, 1 << 20)];
    rig.fill(&runs, 1);
    assert_eq!(rig.run(JobKind::Write, 0, &runs), JobEnd::Done);
    assert_eq!(rig.run_range(JobKind::Flush, 0, 0), JobEnd::Done);
    let blocks = || path.metadata().unwrap().blocks();
    let full = blocks();
    let keep = JobKind::WriteZeroes { unmap: false };
    assert_eq!(rig.run_range(keep, 0, 1 << 20), JobEnd::Done);
    assert!(blocks() > 0);
    if rig.disk.geometry().discard {
        let end = rig.run_range(JobKind::Discard, 0, 1 << 20);
        assert_eq!(end, JobEnd::Done);
        assert!(blocks() < full);
    }
}

/// Not a test of its own: the server of slow disks.
#[test]
fn slow_disk_server() {
    common::fuse::server();
}

fn with_slow_disk(test: impl FnOnce(&SlowDisk) + Send) {
    privately(|| match SlowDisk::mount(1 << 20) {
        Ok(disk) => test(&disk),
        Err(e) => println!("SKIPPED (no FUSE: {e})"),
    });
}

#[test]
fn what_the_kernel_has_not_begun_is_taken_back() {
    // More than the kernel runs at one time, whatever it has of processors.
    const COUNT: usize = 400;
    with_slow_disk(|disk| {
        let mut rig = rig(&disk.path(), Caching::Direct);
        disk.keep(&[FSYNC]);
        let ids: Vec<_> = (0..COUNT)
            .map(|_| rig.submit_range(JobKind::Flush, 0, 0))
            .collect();
        assert_eq!(disk.wait_for_kept(), FSYNC);
        for id in &ids {
            rig.disk.cancel(*id);
        }
        let first = rig.at_least(COUNT - 256);
        assert!(first.iter().all(|e| e.end == JobEnd::Cancelled));
        disk.let_go();
        let rest = rig.ends(COUNT - first.len());
        assert!(rest.iter().any(|e| e.end == JobEnd::Done));
        assert!(
            rest.iter()
                .all(|e| matches!(e.end, JobEnd::Done | JobEnd::Cancelled))
        );
    });
}

#[test]
fn a_read_in_flight_is_noted_by_whoever_waits_for_it() {
    with_slow_disk(|disk| {
        let mut rig = rig(&disk.path(), Caching::Direct);
        rig.noted();
        disk.keep(&[READ]);
        rig.submit(JobKind::Read, 0, &[(0x5000, 4096)]);
        assert_eq!(disk.wait_for_kept(), READ);
        let Rig {
            disk: backend, ram, ..
        } = rig;
        drop(backend);
        assert_eq!(std::sync::Arc::strong_count(&ram), 2);
        disk.let_go();
        until("memory is given back", || {
            std::sync::Arc::strong_count(&ram) == 1
        });
        let mut noted = Vec::new();
        ram.take_vmm_writes(|run| noted.extend(run.frames()));
        assert_eq!(noted, [5]);
    });
}

#[test]
fn slow_storage_keeps_everything_for_a_while_and_does_not_let_go() {
    let (_dir, path) = image(1 << 20);
    let mut spec = DiskSource::File(path).spec();
    spec.delay_ms = 40;
    let mut rig = Rig::new(open(&spec, Role::Owner).unwrap());
    let runs = [(0, 4096)];
    let data = rig.fill(&runs, 8);
    let begin = Instant::now();
    let id = rig.submit(JobKind::Write, 0, &runs);
    rig.disk.hold(true);
    rig.disk.cancel(id);
    assert_eq!(rig.end(id), JobEnd::Done);
    assert!(begin.elapsed() >= Duration::from_millis(40));
    assert_eq!(rig.read_disk(0, 4096), data);
}

#[test]
fn slow_storage_does_what_it_was_told_when_nobody_listens_any_more() {
    with_slow_disk(|disk| {
        let file = FileBackend::open(&disk.path(), false, Role::Owner, Caching::Direct).unwrap();
        let slow = Slow::new(Box::new(file), Duration::from_millis(20)).unwrap();
        let mut rig = Rig::new(Box::new(slow));
        disk.keep(&[WRITE]);
        let runs = [(0, 4096)];
        rig.fill(&runs, 6);
        rig.submit(JobKind::Write, 8192, &runs);
        drop(rig);
        assert_eq!(disk.wait_for_kept(), WRITE);
        let spec = DiskSource::File(disk.path()).spec();
        let why = open(&spec, Role::Owner).unwrap_err().to_string();
        assert!(why.contains("in use"), "{why}");
        disk.let_go();
        until("it lets go", || open(&spec, Role::Owner).is_ok());
        assert_eq!(disk.data(8192, 4096), pattern(4096, 6));
    });
}
