//! A file system with one file, `disk`, whose writes (or reads) are answered when the test says
//! so: storage that is slow and does not let go. Speaks FUSE to the kernel directly.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use super::LONG;
use super::mounts::mount;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Direct requests are asynchronous: nobody waits for them inside the kernel.
const ASYNC_DIO: u32 = 1 << 15;
const BIG_WRITES: u32 = 1 << 5;
const MAX_WRITE: u32 = 128 << 10;

pub(crate) struct SlowDisk {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    arrived: Receiver<u32>,
}

struct Shared {
    device: File,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    data: Vec<u8>,
    /// What is kept back from now on.
    keep: Vec<u32>,
    kept: Vec<Request>,
}

struct Request {
    opcode: u32,
    unique: u64,
    node: u64,
    body: Vec<u8>,
}

impl SlowDisk {
    /// A disk of `len` zeros. In a mount namespace of the test's own.
    pub(crate) fn mount(len: usize) -> io::Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let dir = tempfile::tempdir()?;
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount("vmferry-test", dir.path(), Some("fuse"), flags, &options)?;
        let state = Mutex::new(State {
            data: vec![0; len],
            ..State::default()
        });
        let shared = Arc::new(Shared { device, state });
        let (tell, arrived) = channel();
        let server = shared.clone();
        std::thread::spawn(move || serve(&server, &tell));
        Ok(Self {
            dir,
            shared,
            arrived,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// From now on requests of these opcodes are not answered.
    pub(crate) fn keep(&self, opcodes: &[u32]) {
        self.shared.state.lock().unwrap().keep = opcodes.to_vec();
    }

    /// Waits until a request is here that is kept.
    pub(crate) fn wait_for_kept(&self) -> u32 {
        self.arrived.recv_timeout(LONG).expect("no request came")
    }

    /// Does what was kept back, and answers.
    pub(crate) fn let_go(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.keep.clear();
        for request in std::mem::take(&mut state.kept) {
            answer(&self.shared.device, &mut state, &request);
        }
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        self.shared.state.lock().unwrap().data.clone()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let target = std::ffi::CString::new(self.dir.path().to_str().unwrap()).unwrap();
        // SAFETY: a string that lives until the call returns.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        self.let_go();
    }
}

fn serve(shared: &Shared, tell: &Sender<u32>) {
    let mut buffer = vec![0; (MAX_WRITE + 4096) as usize];
    loop {
        let len = match (&shared.device).read(&mut buffer) {
            Ok(len) => len,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let request = Request {
            opcode: number(&buffer, 4, 4) as u32,
            unique: number(&buffer, 8, 8),
            node: number(&buffer, 16, 8),
            body: buffer[40..len].to_vec(),
        };
        let mut state = shared.state.lock().unwrap();
        if state.keep.contains(&request.opcode) {
            let opcode = request.opcode;
            state.kept.push(request);
            let _ = tell.send(opcode);
        } else {
            answer(&shared.device, &mut state, &request);
        }
    }
}

fn answer(device: &File, state: &mut State, request: &Request) {
    let body = &request.body;
    let range = |state: &State| {
        let start = number(body, 8, 8) as usize;
        start..(start + number(body, 16, 4) as usize).min(state.data.len())
    };
    let reply = match request.opcode {
        FORGET | BATCH_FORGET | INTERRUPT => return,
        INIT => Ok(init()),
        LOOKUP if body.starts_with(b"disk\0") => {
            let mut out = words(&[2, 0, 0, 0, 0]);
            out.extend(attributes(2, state.data.len()));
            Ok(out)
        }
        GETATTR => {
            let mut out = words(&[0, 0]);
            out.extend(attributes(request.node, state.data.len()));
            Ok(out)
        }
        OPEN => Ok(words(&[1, 0])),
        READ => Ok(state.data[range(state)].to_vec()),
        WRITE => {
            let at = range(state);
            let len = at.len();
            state.data[at].copy_from_slice(&body[40..40 + len]);
            Ok(words(&[len as u64]))
        }
        FLUSH | RELEASE | FSYNC => Ok(Vec::new()),
        LOOKUP => Err(libc::ENOENT),
        _ => Err(libc::ENOSYS),
    };
    let (error, payload) = match reply {
        Ok(payload) => (0, payload),
        Err(errno) => (-errno, Vec::new()),
    };
    let mut message = Vec::new();
    message.extend(((16 + payload.len()) as u32).to_ne_bytes());
    message.extend(error.to_ne_bytes());
    message.extend(request.unique.to_ne_bytes());
    message.extend(payload);
    // Who has asked may be gone.
    let _ = { device }.write(&message);
}

fn init() -> Vec<u8> {
    let mut out = Vec::new();
    for word in [7, 31, 0, ASYNC_DIO | BIG_WRITES] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(16u16.to_ne_bytes());
    out.extend(12u16.to_ne_bytes());
    out.extend(MAX_WRITE.to_ne_bytes());
    out.extend(1u32.to_ne_bytes());
    out.resize(64, 0);
    out
}

/// `struct fuse_attr`: the root is a directory, node 2 the disk.
fn attributes(node: u64, len: usize) -> Vec<u8> {
    let size = if node == 2 { len as u64 } else { 0 };
    let mode: u32 = if node == 2 { 0o100_600 } else { 0o40_755 };
    let mut out = words(&[node, size, size / 512, 0, 0, 0]);
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    word[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_ne_bytes(word)
}
