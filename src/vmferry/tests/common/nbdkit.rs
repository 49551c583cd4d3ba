//! An nbdkit of our own, which can be stopped, killed and started again.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmferry_machine::{DiskSource, DiskSpec};

use super::lab::Lab;

/// A server with a disk in an image of the lab.
#[derive(Debug)]
pub(crate) struct Nbdkit {
    socket: PathBuf,
    image: PathBuf,
    filters: Vec<String>,
    child: Child,
}

impl Nbdkit {
    /// Starts it over `mib` MiB of zeros, with these words on its command line: filters first,
    /// their parameters after `--`.
    pub(crate) fn start(lab: &Lab, mib: u64, words: &[&str]) -> Self {
        let (socket, image) = (lab.path("nbd.sock"), lab.path("nbd.img"));
        let file = std::fs::File::create_new(&image).unwrap();
        file.set_len(mib << 20).unwrap();
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
    pub(crate) fn disk(&self) -> DiskSpec {
        DiskSource::Nbd(format!("nbd+unix:///?socket={}", self.socket.display())).spec()
    }

    fn signal(&self, signal: i32) {
        let pid = self.child.id().try_into().unwrap();
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// It answers nothing any more, and closes nothing.
    pub(crate) fn hang(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// It goes on.
    pub(crate) fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGKILL: nothing that it has not done will be done.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It is there again, with the same disk.
    pub(crate) fn start_again(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.child = serve(&self.socket, &self.image, &self.filters);
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        assert!(began.elapsed() < super::GUARD, "nbdkit does not come up");
        assert_eq!(child.try_wait().unwrap(), None, "nbdkit ends at once");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}
