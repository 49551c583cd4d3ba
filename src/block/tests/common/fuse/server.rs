//! The file system's own side: speaks FUSE with the kernel, and lines of text with the test.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{FSYNC, READ, WRITE};
use crate::common::mounts::mount;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Direct requests are asynchronous: nobody waits for them inside the kernel.
const ASYNC_DIO: u32 = 1 << 15;
const BIG_WRITES: u32 = 1 << 5;
const MAX_WRITE: u32 = 128 << 10;

/// No test takes so long, in seconds. A request that nobody answers keeps whoever has made it from
/// dying: the server goes in the end, and its requests with it.
const LIFE: u32 = 600;

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

/// Serves a disk of `len` zeros at `dir` until nobody sends lines any more.
pub(super) fn run(dir: &Path, len: usize) -> io::Result<()> {
    // SAFETY: touches no memory.
    unsafe { libc::alarm(LIFE) };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    mount("vmferry-test", dir, Some("fuse"), flags, &options)?;
    let device = Arc::new(device);
    let state = Arc::new(Mutex::new(State {
        data: vec![0; len],
        ..State::default()
    }));
    let (served, of) = (device.clone(), state.clone());
    std::thread::spawn(move || serve(&served, &of));
    tell("mounted");
    for line in io::stdin().lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default().to_owned();
        let numbers: Vec<usize> = words.map(|w| w.parse().unwrap()).collect();
        let mut state = state.lock().unwrap();
        match (verb.as_str(), numbers.as_slice()) {
            ("keep", opcodes) => {
                state.keep = opcodes.iter().map(|o| *o as u32).collect();
                tell("kept-from-now");
            }
            ("go", []) => {
                state.keep.clear();
                for request in std::mem::take(&mut state.kept) {
                    answer(&device, &mut state, &request);
                }
                tell("gone");
            }
            ("data", [offset, len]) => {
                let bytes = &state.data[*offset..offset + len];
                let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                tell(&format!("data {hex}"));
            }
            _ => panic!("{line}"),
        }
    }
    Ok(())
}

/// A line of its own: the test harness writes there as well.
fn tell(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "\n{}{line}", super::MARK).unwrap();
    out.flush().unwrap();
}

fn serve(device: &File, state: &Mutex<State>) {
    let mut buffer = vec![0; (MAX_WRITE + 4096) as usize];
    loop {
        let len = match { device }.read(&mut buffer) {
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
        let mut state = state.lock().unwrap();
        if state.keep.contains(&request.opcode) {
            tell(&format!("kept {}", request.opcode));
            state.kept.push(request);
        } else {
            answer(device, &mut state, &request);
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
