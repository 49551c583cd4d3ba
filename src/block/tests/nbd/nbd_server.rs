//! `nbd-server`.

use std::io::ErrorKind;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use vmferry_block::{BlockBackend, Extent, nbd};

use crate::common::until;
use crate::rig::Disk;
use crate::servers::Place;
use crate::suite::{self, DISK, Made};

/// A server in the background, with a process for each client.
struct Daemon(Option<Pid>);

/// A server of the image in `place`, as `disk`.
fn serve(place: &Place) -> Daemon {
    let (pid, socket) = (place.at("pid"), place.at("socket"));
    let _ = std::fs::remove_file(&pid);
    let _ = std::fs::remove_file(&socket);
    let config = format!(
        "[generic]\nuser = root\ngroup = root\nallowlist = true\nlistenaddr = {}\n\
         unixsock = {}\n\
         [disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        place.address(),
        socket.display(),
        place.at("disk.img").display()
    );
    std::fs::write(place.at("config"), config).unwrap();
    let mut command = Command::new("nbd-server");
    command.arg("-C").arg(place.at("config"));
    let status = command.arg("-p").arg(&pid).status();
    let status = status.unwrap_or_else(|e| match e.kind() {
        ErrorKind::NotFound => {
            panic!("nbd-server is not installed: ./scripts/test installs what the tests need")
        }
        _ => panic!("{command:?}: {e}"),
    });
    assert!(status.success(), "{command:?}: {status}");
    // It says neither when its number is written nor when it listens.
    let number = || std::fs::read_to_string(&pid).ok()?.trim().parse().ok();
    until("nbd-server has a number", || number().is_some());
    let daemon = Daemon(number().and_then(Pid::from_raw));
    until("nbd-server listens", || {
        nbd::open(&place.uri("disk"), true).is_ok()
    });
    daemon
}

impl Daemon {
    /// Ends it and its children, and waits for its end.
    fn end(&mut self, signal: Signal) {
        let Some(pid) = self.0.take() else {
            return;
        };
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process_group(pid, signal).unwrap();
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

#[test]
fn it_keeps_the_contract() {
    suite::run(&|read_only| {
        let place = Place::new();
        place.image(DISK);
        let server = serve(&place);
        let disk = nbd::open(&place.uri("disk"), read_only.0).unwrap();
        assert!(disk.may_move().is_ok());
        Made {
            disk: Box::new(disk),
            keep: Box::new((server, place)),
        }
    });
}

#[test]
fn a_server_that_goes_and_comes_back_loses_nothing() {
    for signal in [Signal::KILL, Signal::TERM] {
        let place = Place::new();
        place.image(64 << 20);
        let mut server = serve(&place);
        let mut disk = Disk::open(&place.uri("disk"));
        let extents: Vec<Extent> = (0..60).map(|i| Extent::new(i << 20, 1 << 20)).collect();
        let ids: Vec<_> = extents.iter().map(|e| disk.write(*e, 5)).collect();
        server.end(signal);
        let _server = serve(&place);
        for id in ids {
            disk.done(id);
        }
        for extent in extents {
            disk.check(extent, 5);
        }
    }
}

#[test]
fn an_export_that_it_does_not_have() {
    let place = Place::new();
    place.image(DISK);
    let _server = serve(&place);
    let why = nbd::open(&place.uri("another"), false).unwrap_err();
    assert!(why.to_string().contains("export"), "{why}");
}
