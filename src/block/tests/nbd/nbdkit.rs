//! `nbdkit`, with plugins and filters that make it behave in many ways.

use rustix::process::Signal;
use vmferry_block::nbd;
use vmferry_block::{BlockBackend, Extent, FormerOwner, JobEnd, JobKind};

use crate::rig::{Disk, pattern};
use crate::servers::{Place, nbdkit};
use crate::suite::{self, DISK, Made};

const A: Extent = Extent::new(0, 65536);
const B: Extent = Extent::new(1 << 20, 65536);

#[test]
fn it_keeps_the_contract() {
    suite::run(&|read_only| {
        let place = Place::new();
        let server = nbdkit(&place, ["memory", &DISK.to_string()]);
        let disk = nbd::open(&place.uri(""), read_only.0).unwrap();
        Made {
            disk: Box::new(disk),
            keep: Box::new((server, place)),
        }
    });
}

#[test]
fn what_is_written_is_read() {
    let place = Place::new();
    let _server = nbdkit(&place, ["memory", "64M"]);
    let mut disk = Disk::open(&place.uri(""));
    let geometry = disk.geometry();
    assert_eq!((geometry.bytes, geometry.block_size), (64 << 20, 512));
    assert!(geometry.flush && geometry.discard && geometry.write_zeroes);
    assert!(disk.backend().may_move().is_ok());
    assert_eq!(disk.backend().former_owner(), FormerOwner::Unknown);
    let extents = [(0, 512), (4096, 65536), (1 << 20, 40 << 20)];
    let extents = extents.map(|(offset, len)| Extent::new(offset, len));
    let writes = extents.map(|extent| disk.write(extent, 1));
    for id in writes {
        disk.done(id);
    }
    let flush = disk.flush();
    disk.done(flush);
    for extent in extents {
        disk.check(extent, 1);
    }
    let kinds = [
        JobKind::WriteZeroes { unmap: true },
        JobKind::WriteZeroes { unmap: false },
        JobKind::Discard,
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let hole = Extent::new((2 + i as u64) << 20, 1 << 20);
        let id = disk.plain(kind, hole);
        disk.done(id);
        disk.check_is(hole, &[0; 1 << 20]);
    }
    disk.check(Extent::new(5 << 20, 1 << 20), 1);
    // Never written: the server tells of a hole.
    disk.check_is(Extent::new(50 << 20, 1 << 20), &[0; 1 << 20]);
    disk.close();
}

#[test]
fn over_tcp_and_without_structured_replies() {
    let place = Place::new();
    let address = place.address();
    let _server = place.nbdkit_at(&address, ["--no-sr", "memory", "8M"]);
    let mut disk = Disk::open(&format!("nbd://{address}/any%20name?connections=2"));
    let id = disk.write(B, 4);
    disk.done(id);
    disk.check(B, 4);
}

#[test]
fn errors_are_the_guests() {
    let place = Place::new();
    let errors = ["memory", "8M", "error-pwrite=ENOSPC", "error-pread=EPERM"];
    let rates = ["error-pwrite-rate=100%", "error-pread-rate=100%"];
    let arguments = ["--filter=error"].iter().chain(&errors).chain(&rates);
    let _server = nbdkit(&place, arguments);
    let mut disk = Disk::open(&place.uri(""));
    let id = disk.write(A, 1);
    assert_eq!(disk.wait(id), JobEnd::Failed(libc::ENOSPC));
    let (id, _) = disk.read(A);
    assert_eq!(disk.wait(id), JobEnd::Failed(libc::EPERM));
    let id = disk.flush();
    disk.done(id);
}

#[test]
fn sizes_of_requests_are_the_servers() {
    let place = Place::new();
    let _server = nbdkit(
        &place,
        [
            "--filter=blocksize-policy",
            "memory",
            "8M",
            "blocksize-error-policy=error",
            "blocksize-minimum=4096",
            "blocksize-preferred=64K",
            "blocksize-maximum=128K",
        ],
    );
    let mut disk = Disk::open(&place.uri(""));
    let geometry = disk.geometry();
    assert_eq!(
        (geometry.block_size, geometry.max_transfer),
        (4096, 128 << 10)
    );
    let large = Extent::new(4096, 1 << 20);
    let id = disk.write(large, 1);
    disk.done(id);
    disk.check(large, 1);
    disk.check(Extent::new(8192 - 512, 1024), 1);
    disk.check(Extent::new(512 * 11, 512 * 513), 1);
    let id = disk.write(Extent::new(512, 512), 2);
    assert_eq!(disk.wait(id), JobEnd::Failed(libc::EINVAL));
    let id = disk.plain(JobKind::Discard, Extent::new(0, 8 << 20));
    disk.done(id);
}

#[test]
fn several_hosts_are_not_safe_where_the_server_says_nothing() {
    let place = Place::new();
    let arguments = [
        "--filter=multi-conn",
        "memory",
        "8M",
        "multi-conn-mode=disable",
    ];
    let _server = nbdkit(&place, arguments);
    let mut disk = Disk::open(&place.uri(""));
    let why = disk.backend().may_move().unwrap_err();
    assert!(why.contains("CAN_MULTI_CONN"), "{why}");
    let only_read = nbd::open(&place.uri(""), true).unwrap();
    assert!(only_read.may_move().is_ok() && only_read.geometry().read_only);
}

/// Arguments of a server of the image, that takes a while for a write.
fn slow(place: &Place) -> [String; 4] {
    [
        "--filter=delay".to_owned(),
        "file".to_owned(),
        format!("file={}", place.at("disk.img").display()),
        "wdelay=100ms".to_owned(),
    ]
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_nothing() {
    for signal in [Signal::KILL, Signal::TERM] {
        let place = Place::new();
        place.image(8 << 20);
        let server = nbdkit(&place, slow(&place));
        let mut disk = Disk::open(&place.uri(""));
        let extents: Vec<Extent> = (0..40).map(|i| Extent::new(i * 65536, 65536)).collect();
        let ids: Vec<_> = extents.iter().map(|e| disk.write(*e, 5)).collect();
        // Some are done, and others are in flight.
        disk.done(ids[0]);
        server.end(signal);
        let later = disk.write(Extent::new(4 << 20, 4096), 6);
        let _server = nbdkit(&place, slow(&place));
        for id in &ids[1..] {
            disk.done(*id);
        }
        disk.done(later);
        for extent in extents {
            disk.check(extent, 5);
        }
        disk.check(Extent::new(4 << 20, 4096), 6);
        let content = std::fs::read(place.at("disk.img")).unwrap();
        assert!(content[65536..131_072] == pattern(Extent::new(65536, 65536), 5));
    }
}

#[test]
fn held_and_killed_is_unknown() {
    let place = Place::new();
    place.image(8 << 20);
    let server = nbdkit(&place, slow(&place));
    let mut disk = Disk::open(&place.uri(""));
    // It is stopped, so that it cannot answer.
    server.stop();
    let (write, (read, _)) = (disk.write(A, 1), disk.read(B));
    disk.sent();
    disk.backend().hold(true);
    disk.backend().cancel(write);
    disk.backend().cancel(read);
    server.end(Signal::KILL);
    assert_eq!(disk.wait(write), JobEnd::Unknown);
    assert_eq!(disk.wait(read), JobEnd::Unknown);
    let _server = nbdkit(&place, slow(&place));
    let later = disk.write(A, 2);
    disk.backend().hold(false);
    disk.done(later);
    disk.check(A, 2);
}

/// TCP does not tell a server that is gone from one that sends nothing more, until it is asked.
#[test]
fn over_tcp_the_end_of_a_server_is_seen() {
    let place = Place::new();
    place.image(8 << 20);
    let address = place.address();
    let server = place.nbdkit_at(&address, slow(&place));
    let mut disk = Disk::open(&format!("nbd://{address}"));
    let lost = disk.write(A, 1);
    disk.sent();
    server.end(Signal::KILL);
    let server = place.nbdkit_at(&address, slow(&place));
    disk.done(lost);
    disk.check(A, 1);
    server.stop();
    let (write, (read, _)) = (disk.write(A, 2), disk.read(B));
    disk.sent();
    disk.backend().hold(true);
    server.end(Signal::KILL);
    assert_eq!(disk.wait(write), JobEnd::Unknown);
    assert_eq!(disk.wait(read), JobEnd::Unknown);
}

#[test]
fn held_what_is_in_flight_ends_as_it_does() {
    let place = Place::new();
    place.image(8 << 20);
    let _server = nbdkit(&place, slow(&place));
    let mut disk = Disk::open(&place.uri(""));
    let write = disk.write(A, 1);
    disk.sent();
    disk.backend().hold(true);
    disk.backend().cancel(write);
    disk.done(write);
}

#[test]
fn a_server_that_hangs_blocks_nothing() {
    let place = Place::new();
    let server = nbdkit(&place, ["memory", "64M"]);
    let mut disk = Disk::open(&format!("{}&connections=1", place.uri("")));
    disk.check_is(A, &[0; 65536]);
    server.stop();
    // More than the socket takes: the last has not been begun.
    let large = |i: u64| Extent::new(i * (8 << 20), 8 << 20);
    let ids: Vec<_> = (0..8).map(|i| disk.write(large(i), 1)).collect();
    let flush = disk.flush();
    disk.backend().cancel(ids[7]);
    disk.backend().cancel(flush);
    assert_eq!(disk.wait(ids[7]), JobEnd::Cancelled);
    assert_eq!(disk.wait(flush), JobEnd::Cancelled);
    disk.backend().hold(true);
    disk.backend().hold(false);
    assert!(disk.reap().is_empty());
    assert!(disk.backend().may_move().is_ok());
    server.go_on();
    for id in &ids[..7] {
        disk.done(*id);
    }
    disk.check(large(6), 1);
    disk.check_is(large(7), &[0; 8 << 20]);
    // Nor does it block the end of the disk.
    server.stop();
    disk.write(A, 1);
    disk.sent();
    let ram = std::sync::Arc::downgrade(&disk.ram);
    disk.close();
    assert_eq!(
        ram.strong_count(),
        1,
        "the memory of what is in flight is gone"
    );
    server.go_on();
    crate::common::until("memory is given back", || ram.strong_count() == 0);
}
