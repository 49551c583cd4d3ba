//! A file system with one file, `disk`, whose requests are answered when the test says so: storage
//! that is slow and does not let go. Its server is a process of its own: a process that served
//! what it waits for itself could not die.

mod server;

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

use super::LONG;

/// FUSE's number of reads.
pub(crate) const READ: u32 = 15;
/// FUSE's number of writes.
pub(crate) const WRITE: u32 = 16;
/// FUSE's number of flushes to stable storage.
pub(crate) const FSYNC: u32 = 20;

/// Begins every line of the server.
const MARK: &str = "slow-disk: ";
/// Tells the test binary that it is to be a server, where, and of how many bytes.
const SERVER: &str = "VMFERRY_BLOCK_TEST_SERVER";

pub(crate) struct SlowDisk {
    dir: tempfile::TempDir,
    server: Child,
    to_server: Mutex<ChildStdin>,
    kept: Mutex<Receiver<String>>,
    answers: Mutex<Receiver<String>>,
}

/// To be called by a test `slow_disk_server` of every test binary that has slow disks.
pub(crate) fn server() {
    let Ok(what) = std::env::var(SERVER) else {
        return;
    };
    let (len, dir) = what.split_once(' ').unwrap();
    let result = server::run(Path::new(dir), len.parse().unwrap());
    println!("{MARK}ended {result:?}");
}

impl SlowDisk {
    /// A disk of `len` zeros. In a mount namespace of the test's own.
    pub(crate) fn mount(len: usize) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut server = Command::new(std::env::current_exe()?)
            .args(["--exact", "slow_disk_server", "--nocapture"])
            .env(SERVER, format!("{len} {}", dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to_server = server.stdin.take().map(Mutex::new);
        let (kept, answers) = listen(server.stdout.take());
        let disk = Self {
            dir,
            server,
            to_server: to_server.ok_or(io::ErrorKind::BrokenPipe)?,
            kept: Mutex::new(kept),
            answers: Mutex::new(answers),
        };
        match disk.answer() {
            told if told == "mounted" => Ok(disk),
            told => Err(io::Error::other(told)),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// From now on requests of these numbers are not answered.
    pub(crate) fn keep(&self, requests: &[u32]) {
        let numbers: String = requests.iter().map(|n| format!(" {n}")).collect();
        self.say(&format!("keep{numbers}"));
        assert_eq!(self.answer(), "kept-from-now");
    }

    /// Waits until a request is here that is kept.
    pub(crate) fn wait_for_kept(&self) -> u32 {
        let kept = self.kept.lock().unwrap();
        kept.recv_timeout(LONG).unwrap().parse().unwrap()
    }

    /// Does what was kept back, and answers.
    pub(crate) fn let_go(&self) {
        self.say("go");
        assert_eq!(self.answer(), "gone");
    }

    /// What the disk holds.
    pub(crate) fn data(&self, offset: usize, len: usize) -> Vec<u8> {
        self.say(&format!("data {offset} {len}"));
        let answer = self.answer();
        let hex = answer.strip_prefix("data ").unwrap();
        (0..len)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn say(&self, line: &str) {
        writeln!(self.to_server.lock().unwrap(), "{line}").unwrap();
    }

    fn answer(&self) -> String {
        let answers = self.answers.lock().unwrap();
        let answer = answers.recv_timeout(LONG);
        answer.unwrap_or_else(|_| "the server has died".to_owned())
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let target = std::ffi::CString::new(self.dir.path().to_str().unwrap()).unwrap();
        // SAFETY: a string that lives until the call returns.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        let mut to_server = self
            .to_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Whoever waits still gets an answer, or an error when the server is gone.
        let _ = writeln!(to_server, "go");
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Requests that are kept, and everything else that the server says.
fn listen(lines: Option<ChildStdout>) -> (Receiver<String>, Receiver<String>) {
    let ((tell_kept, kept), (tell, answers)) = (channel(), channel());
    let lines = lines
        .into_iter()
        .flat_map(|out| BufReader::new(out).lines());
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let Some(line) = line.strip_prefix(MARK) else {
                continue;
            };
            let _ = match line.strip_prefix("kept ") {
                Some(number) => tell_kept.send(number.to_owned()),
                None => tell.send(line.to_owned()),
            };
        }
    });
    (kept, answers)
}
