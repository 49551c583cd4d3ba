//! `qemu-nbd`.

use std::process::Command;

use rustix::process::Signal;
use vmferry_block::{BlockBackend, Extent, JobKind, nbd};

use crate::rig::Disk;
use crate::servers::{Place, Server, start};
use crate::suite::{self, DISK, Made};

/// A server of the image in `place`.
fn qemu(place: &Place, arguments: &[&str]) -> Server {
    let (socket, pid) = (place.at("socket"), place.at("pid"));
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-t", "--discard=unmap", "-k"]);
    command.arg(socket).arg(place.at("disk.img"));
    let pid_file = format!("--pid-file={}", pid.display());
    start(command, &pid, arguments.iter().copied().chain([&*pid_file]))
}

#[test]
fn it_keeps_the_contract() {
    suite::run(&|read_only| {
        let place = Place::new();
        place.image(DISK);
        let server = qemu(&place, &["--shared=8"]);
        let disk = nbd::open(&place.uri(""), read_only.0).unwrap();
        assert!(disk.may_move().is_ok());
        Made {
            disk: Box::new(disk),
            keep: Box::new((server, place)),
        }
    });
}

#[test]
fn holes_are_read_as_zeros_and_the_image_has_what_is_written() {
    let place = Place::new();
    let image = place.image(64 << 20);
    let _server = qemu(&place, &["--shared=8", "-x", "a name"]);
    let mut disk = Disk::open(&place.uri("a%20name"));
    // Data and holes in turn: replies come in many chunks.
    let ids: Vec<_> = (0..50)
        .map(|i| disk.write(Extent::new(i * 131_072, 65536), 1))
        .collect();
    for id in ids {
        disk.done(id);
    }
    let flush = disk.flush();
    disk.done(flush);
    let content = std::fs::read(image).unwrap();
    disk.check_is(Extent::new(0, 64 << 20), &content);
    disk.check(Extent::new(131_072, 65536), 1);
    let trim = disk.plain(JobKind::Discard, Extent::new(0, 64 << 20));
    disk.done(trim);
    disk.check_is(Extent::new(0, 1 << 20), &[0; 1 << 20]);
}

#[test]
fn a_server_that_goes_and_comes_back_loses_nothing() {
    for signal in [Signal::KILL, Signal::TERM] {
        let place = Place::new();
        place.image(64 << 20);
        let server = qemu(&place, &["--shared=8"]);
        let mut disk = Disk::open(&place.uri(""));
        let extents: Vec<Extent> = (0..60).map(|i| Extent::new(i << 20, 1 << 20)).collect();
        let ids: Vec<_> = extents.iter().map(|e| disk.write(*e, 5)).collect();
        server.end(signal);
        let _server = qemu(&place, &["--shared=8"]);
        for id in ids {
            disk.done(id);
        }
        for extent in extents {
            disk.check(extent, 5);
        }
    }
}

#[test]
fn one_client_only() {
    let place = Place::new();
    place.image(8 << 20);
    let _server = qemu(&place, &["--shared=1"]);
    let mut disk = Disk::open(&place.uri(""));
    let why = disk.backend().may_move().unwrap_err();
    assert!(why.contains("--shared"), "{why}");
    let extent = Extent::new(0, 65536);
    let id = disk.write(extent, 1);
    disk.done(id);
    disk.check(extent, 1);
}
