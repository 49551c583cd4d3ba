//! Real servers, started and ended by the tests.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use tempfile::TempDir;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
}

/// A directory for a test's files, and what is in it.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A raw image of `bytes` zeros.
    pub(crate) fn image(&self, bytes: u64) -> PathBuf {
        let path = self.at("disk.img");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        path
    }

    /// A TCP address that nobody else has: of this test in this process.
    pub(crate) fn address(&self) -> String {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = std::process::id();
        let here = NEXT.fetch_add(1, Ordering::Relaxed);
        let [.., high, low] = process.to_be_bytes();
        format!("127.{}.{low}.{here}", high | 0x80)
    }

    /// `nbdkit` at this TCP address.
    pub(crate) fn nbdkit_at<A: AsRef<OsStr>>(
        &self,
        address: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Server {
        let mut command = Command::new("nbdkit");
        command
            .args(["-f", "-i", address, "-P"])
            .arg(self.at("pid"));
        start(command, &self.at("pid"), arguments)
    }

    /// URI of the export of the server that listens at `socket` in here.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.at("socket").display()
        )
    }
}

/// `nbdkit` at `socket` in `place`, with these arguments.
pub(crate) fn nbdkit<A: AsRef<OsStr>>(
    place: &Place,
    arguments: impl IntoIterator<Item = A>,
) -> Server {
    let socket = place.at("socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-P"]).arg(place.at("pid"));
    command.arg("-U").arg(socket);
    start(command, &place.at("pid"), arguments)
}

/// Starts a server, and waits until it has written its number to `pid_file`: it listens then.
pub(crate) fn start<A: AsRef<OsStr>>(
    mut command: Command,
    pid_file: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> Server {
    let _ = std::fs::remove_file(pid_file);
    let notes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let written = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&notes, pid_file.parent().unwrap(), written).unwrap();
    command.args(arguments).stdin(Stdio::null());
    let child = command.spawn().unwrap_or_else(|e| match e.kind() {
        ErrorKind::NotFound => panic!(
            "{:?} is not installed: ./scripts/test installs what the tests need",
            command.get_program()
        ),
        _ => panic!("{command:?}: {e}"),
    });
    let server = Server { child };
    let process = pidfd_open(server.pid(), PidfdFlags::empty()).unwrap();
    while std::fs::read(pid_file).is_ok_and(|pid| pid.is_empty()) || !pid_file.exists() {
        let mut either = [
            PollFd::new(&notes, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        poll(&mut either, None).unwrap();
        assert!(either[1].revents().is_empty(), "{command:?} has ended");
        rustix::io::read(&notes, &mut [0u8; 4096]).unwrap();
    }
    server
}

impl Server {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops it, and waits until all of it stands still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let stopped = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it, and waits for its end.
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
