//! Whose disk it is, and that its former owner has let go of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::fuse::{SlowDisk, WRITE};
use common::mounts::privately;
use common::{Rig, until};
use tempfile::TempDir;
use vmferry_block::{BlockBackend, DiskSource, FormerOwner, JobEnd, JobKind, Role};

const DISK: usize = 1 << 20;
const OWNER_BYTE: i64 = 1 << 62;
/// Tells the test binary that it is to be an owner, and of what.
const CHILD: &str = "VMFERRY_BLOCK_TEST_OWNER";

fn open(path: &Path, role: Role) -> Result<Box<dyn BlockBackend>, String> {
    open_as(path, role, false)
}

fn open_as(path: &Path, role: Role, read_only: bool) -> Result<Box<dyn BlockBackend>, String> {
    let mut spec = DiskSource::File(path.to_owned()).spec();
    spec.read_only = read_only;
    vmferry_block::open(&spec, role).map_err(|e| e.to_string())
}

/// Whether the former owner has let go.
fn gone(backend: &mut Box<dyn BlockBackend>) -> bool {
    backend.former_owner() == FormerOwner::Gone
}

fn refused(path: &Path, role: Role, read_only: bool) -> String {
    open_as(path, role, read_only).unwrap_err()
}

fn image() -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DISK as u64).unwrap();
    (dir, path)
}

#[test]
fn a_disk_has_one_owner() {
    let (_dir, path) = image();
    let owner = open(&path, Role::Owner).unwrap();
    let why = refused(&path, Role::Owner, false);
    assert!(why.contains("in use by another machine"), "{why}");
    assert!(why.contains("disk.img"), "{why}");
    let why = refused(&path, Role::Owner, true);
    assert!(why.contains("written by another machine"), "{why}");
    // To look at it is free.
    let look = open(&path, Role::Inspector).unwrap();
    assert_eq!(look.geometry().bytes, DISK as u64);
    assert!(look.geometry().read_only);
    drop(owner);
    drop(open(&path, Role::Owner).unwrap());
}

#[test]
fn readers_share_a_disk() {
    let (_dir, path) = image();
    let readers = [Role::Owner, Role::Owner, Role::Heir].map(|role| open_as(&path, role, true));
    let mut readers = readers.map(Result::unwrap);
    assert!(readers.iter_mut().all(gone));
    let why = refused(&path, Role::Owner, false);
    assert!(why.contains("in use"), "{why}");
    drop(readers);
    drop(open(&path, Role::Owner).unwrap());
}

#[test]
fn an_heir_becomes_the_owner_when_the_owner_lets_go() {
    let (_dir, path) = image();
    let mut owner = open(&path, Role::Owner).unwrap();
    assert!(gone(&mut owner), "it had none");
    let mut heir = open(&path, Role::Heir).unwrap();
    let why = refused(&path, Role::Heir, false);
    assert!(why.contains("another migration"), "{why}");
    assert!(!gone(&mut heir));
    heir.inherit();
    assert!(!gone(&mut heir));
    drop(owner);
    // Nobody comes between the two.
    let why = refused(&path, Role::Owner, false);
    assert!(why.contains("about to be taken over"), "{why}");
    assert!(gone(&mut heir));
    let why = refused(&path, Role::Owner, false);
    assert!(why.contains("in use"), "{why}");
    assert!(gone(&mut heir));
    // And on it goes.
    let mut next = open(&path, Role::Heir).unwrap();
    next.inherit();
    assert!(!gone(&mut next));
    drop(heir);
    assert!(gone(&mut next));
}

#[test]
fn an_heir_that_backs_out_leaves_the_owner_as_it_was() {
    let (_dir, path) = image();
    let owner = open(&path, Role::Owner).unwrap();
    drop(open(&path, Role::Heir).unwrap());
    assert!(refused(&path, Role::Owner, false).contains("in use"));
    // Another attempt is possible, also when the owner has died before the switchover.
    let mut heir = open(&path, Role::Heir).unwrap();
    drop(owner);
    assert!(gone(&mut heir));
    assert!(refused(&path, Role::Owner, false).contains("about to be taken over"));
    drop(heir);
    drop(open(&path, Role::Owner).unwrap());
}

#[test]
fn what_is_no_disk_is_refused_in_words() {
    let (dir, path) = image();
    let why = refused(dir.path(), Role::Owner, false);
    assert!(why.contains("neither a file nor a block device"), "{why}");
    let why = refused(&dir.path().join("none"), Role::Inspector, false);
    assert!(why.contains("does not exist"), "{why}");
    for len in [0, 513] {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        let why = refused(&path, Role::Owner, false);
        assert!(why.contains("a multiple of 512"), "{why}");
    }
}

/// Not a test of its own: the owner that [`Owner`] starts. Writes one block, tells when that is
/// with the kernel, and waits to be killed.
#[test]
fn owner_in_another_process() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let mut rig = Rig::new(open(Path::new(&path), Role::Owner).unwrap());
    let runs = [(0, 4096)];
    rig.fill(&runs, 7);
    rig.submit(JobKind::Write, 0, &runs);
    println!("\nSUBMITTED");
    std::io::stdout().flush().unwrap();
    // Ends with the test that has started it.
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Owner(Child);

impl Owner {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner_in_another_process", "--nocapture"])
            .env(CHILD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let told = out.lines().map_while(Result::ok).any(|l| l == "SUBMITTED");
        assert!(told, "the owner has failed");
        Self(child)
    }

    /// SIGKILL, and until there is no such process any more.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn an_owner_that_is_killed_has_let_go() {
    let (_dir, path) = image();
    let owner = Owner::start(&path);
    let mut heir = open(&path, Role::Heir).unwrap();
    heir.inherit();
    assert!(!gone(&mut heir));
    owner.kill();
    wait_for_lock(&path);
    assert!(gone(&mut heir));
}

/// Blocks until nobody has the owner's byte.
fn wait_for_lock(path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    // Unlocked in words: a child that another test starts just now has the file as well for a
    // moment, and with it a lock that is left to the closing.
    for (kind, command) in [
        (libc::F_WRLCK, libc::F_OFD_SETLKW),
        (libc::F_UNLCK, libc::F_OFD_SETLK),
    ] {
        let lock = libc::flock {
            l_type: kind as i16,
            l_whence: 0,
            l_start: OWNER_BYTE,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open for the call, and `lock` is what the command takes.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) };
        assert_eq!(rc, 0);
    }
}

/// Not a test of its own: the server of slow disks.
#[test]
fn slow_disk_server() {
    common::fuse::server();
}

fn with_slow_disk(test: impl FnOnce(&SlowDisk) + Send) {
    privately(|| match SlowDisk::mount(DISK) {
        Ok(disk) => test(&disk),
        Err(e) => println!("SKIPPED (no FUSE: {e})"),
    });
}

/// The proof that everything rests on: the process is gone, its write is not, and so the lock is
/// not either.
#[test]
fn a_write_in_flight_keeps_the_lock_of_an_owner_that_is_killed() {
    with_slow_disk(|disk| {
        disk.keep(&[WRITE]);
        let owner = Owner::start(&disk.path());
        assert_eq!(disk.wait_for_kept(), WRITE);
        let mut heir = open(&disk.path(), Role::Heir).unwrap();
        heir.inherit();
        owner.kill();
        assert!(!gone(&mut heir), "its write is still to come");
        assert_eq!(disk.data(0, 4096), [0; 4096]);
        disk.let_go();
        wait_for_lock(&disk.path());
        assert!(gone(&mut heir));
        assert_eq!(disk.data(0, 4096), common::pattern(4096, 7));
    });
}

#[test]
fn a_dropped_backend_keeps_lock_and_memory_until_its_write_is_through() {
    with_slow_disk(|disk| {
        let mut rig = Rig::new(open(&disk.path(), Role::Owner).unwrap());
        let ram = std::sync::Arc::downgrade(&rig.ram);
        disk.keep(&[WRITE]);
        let runs = [(0, 4096)];
        rig.fill(&runs, 3);
        let id = rig.submit(JobKind::Write, 4096, &runs);
        assert_eq!(disk.wait_for_kept(), WRITE);
        rig.disk.cancel(id);
        let mut heir = open(&disk.path(), Role::Heir).unwrap();
        heir.inherit();
        drop(rig);
        assert!(!gone(&mut heir));
        assert_eq!(ram.strong_count(), 1);
        disk.let_go();
        until("it lets go", || gone(&mut heir));
        until("memory is given back", || ram.strong_count() == 0);
        assert_eq!(disk.data(4096, 4096), common::pattern(4096, 3));
    });
}

#[test]
fn what_runs_cannot_be_cancelled_and_its_real_end_comes() {
    with_slow_disk(|disk| {
        let mut rig = Rig::new(open(&disk.path(), Role::Owner).unwrap());
        disk.keep(&[WRITE]);
        let id = rig.submit(JobKind::Write, 0, &[(0, 4096)]);
        assert_eq!(disk.wait_for_kept(), WRITE);
        rig.disk.hold(true);
        rig.disk.cancel(id);
        let mut ended = Vec::new();
        rig.disk.reap(&mut ended);
        assert_eq!(ended, []);
        disk.let_go();
        assert_eq!(rig.end(id), JobEnd::Done);
    });
}
