//! The guest's work, read from outside.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmferry_machine::Beat;
use vmferry_machine::workload::monotonic_ns;

/// Where the payload's state has the phase, which is one while it works, and the work done: see
/// `State` in the guest's workload.
const PHASE: u64 = 0;
const WORK: u64 = 16;
const WORKING: u64 = 1;
/// How often the work is read: as often as the payload says it to vmferry.
const BEAT: Duration = Duration::from_millis(1);

/// The word at `address` of another process.
fn peek(pid: u32, address: u64) -> Result<u64, String> {
    let mut word = [0; 8];
    let to = IoSliceMut::new(&mut word);
    let from = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: 8,
    };
    // SAFETY: `IoSliceMut` is an iovec by its documentation, and points to eight bytes of ours.
    let n = unsafe {
        libc::process_vm_readv(pid as i32, (&raw const to).cast(), 1, &raw const from, 1, 0)
    };
    if n == 8 {
        return Ok(u64::from_le_bytes(word));
    }
    let error = std::io::Error::last_os_error();
    Err(format!(
        "reading the guest's RAM in QEMU's process: {error}"
    ))
}

/// Watches a guest's work from outside, by reading QEMU's memory: QEMU itself has nothing to do
/// for it, and no lock of its is taken.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Beat>>,
}

impl Watch {
    /// Watches the payload whose state is at `state` of process `pid`.
    #[must_use]
    pub fn start(pid: u32, state: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || watch(pid, state + WORK, &stop)
        });
        Self { stop, thread }
    }

    /// Ends it; whenever the work was another than before, it is among what is returned.
    #[must_use]
    pub fn end(self) -> Vec<Beat> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

fn watch(pid: u32, address: u64, stop: &AtomicBool) -> Vec<Beat> {
    let mut beats: Vec<Beat> = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let Ok(work) = peek(pid, address) else { break };
        let time_ns = monotonic_ns();
        if beats.last().is_none_or(|last| last.work != work) {
            beats.push(Beat { time_ns, work });
        }
        thread::sleep(BEAT);
    }
    beats
}

/// Whether the payload whose state is at `state` of process `pid` works: has filled its RAM.
pub(super) fn works(pid: u32, state: u64) -> Result<bool, String> {
    peek(pid, state + PHASE).map(|phase| phase == WORKING)
}
