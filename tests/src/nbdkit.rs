//! An nbdkit of our own, which can be stopped, killed and started again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmferry_block::{DiskSource, DiskSpec};

/// It comes up in milliseconds.
const GUARD: Duration = Duration::from_secs(60);

/// A server with a disk in an image in a directory of the test.
#[derive(Debug)]
pub struct Nbdkit {
    socket: PathBuf,
    image: PathBuf,
    filters: Vec<String>,
    child: Child,
}

impl Nbdkit {
    /// Starts it over `mib` MiB of zeros, with these words on its command line: filters first,
    /// their parameters after `--`.
    ///
    /// # Panics
    /// If there is no nbdkit, or it does not come up.
    #[must_use]
    pub fn start(dir: &Path, mib: u64, words: &[&str]) -> Self {
        let (socket, image) = (dir.join("nbd.sock"), dir.join("nbd.img"));
        let file = std::fs::File::create_new(&image).expect("an image");
        file.set_len(mib << 20).expect("an image");
        let filters: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let child = serve(&socket, &image, &filters);
        Self {
            socket,
            image,
            filters,
            child,
        }
    }

    /// The disk as a guest is given it.
    #[must_use]
    pub fn disk(&self) -> DiskSpec {
        DiskSource::Nbd(format!("nbd+unix:///?socket={}", self.socket.display())).spec()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is ours");
    }

    /// It answers nothing any more, and closes nothing.
    pub fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGKILL: nothing that it has not done will be done.
    pub fn kill(&mut self) {
        // One that has gone by itself is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It is there again, with the same disk.
    pub fn start_again(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.child = serve(&self.socket, &self.image, &self.filters);
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(socket: &PathBuf, image: &PathBuf, words: &[String]) -> Child {
    let pid = socket.with_extension("pid");
    let _ = std::fs::remove_file(&pid);
    let split = words.iter().position(|w| w == "--").unwrap_or(words.len());
    let (filters, parameters) = words.split_at(split);
    let mut child = Command::new("nbdkit")
        .args(["--foreground", "--threads", "64", "--unix"])
        .arg(socket)
        .arg("--pidfile")
        .arg(&pid)
        .args(filters.iter().map(|f| format!("--filter={f}")))
        .arg("file")
        .arg(image)
        .args(parameters.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("nbdkit: scripts/test installs it");
    // It writes its pid when it listens, and tells nobody else.
    let began = Instant::now();
    while !pid.exists() {
        assert!(began.elapsed() < GUARD, "nbdkit does not come up");
        let ended = child.try_wait().expect("it is ours");
        assert_eq!(ended, None, "nbdkit ends at once");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}
