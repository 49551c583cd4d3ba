//! The ring, with an eventfd: requests go in at once or not at all, and nothing waits.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

/// Requests that the kernel has at one time; each may have a cancellation beside it.
pub(super) const MAX_IN_FLIGHT: usize = 1024;
const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 4 * MAX_IN_FLIGHT as u32;
/// A cancellation's own completion.
const CANCELLATION: u64 = u64::MAX;
/// Attempts of a kernel without memory before the ring counts as broken.
const MAX_REFUSALS: u32 = 10_000;

/// Requests by tokens of the caller's choice.
pub(super) struct Ring {
    ring: IoUring,
    event: OwnedFd,
    /// What the kernel has not looked at, in order; it does as soon as it has memory.
    unseen: VecDeque<u64>,
    refusals: u32,
    broken: Option<i32>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = &self.broken;
        write!(f, "Ring({} unseen, broken {broken:?})", self.unseen.len())
    }
}

impl Ring {
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            event,
            unseen: VecDeque::new(),
            refusals: 0,
            broken: None,
        })
    }

    /// Whether it takes another request, or why it never will again.
    pub(super) fn is_open(&self) -> Result<bool, i32> {
        self.broken.map_or(Ok(self.unseen.is_empty()), Err)
    }

    /// Hands a request to the kernel; its result comes out of [`Self::reap`]. Only when
    /// [open](Self::is_open).
    ///
    /// # Safety
    /// Memory and descriptors of `entry` stay as they are until then.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, token: u64) {
        // SAFETY: the caller's promise.
        if unsafe { self.add(&entry.user_data(token)) } {
            self.unseen.push_back(token);
            self.enter();
        }
    }

    /// Asks the kernel to give up a request. Whether it does, the request's own result tells.
    pub(super) fn cancel(&mut self, token: u64) {
        let entry = opcode::AsyncCancel::new(token).build();
        // SAFETY: a cancellation refers to no memory.
        if self.broken.is_none() && unsafe { self.add(&entry.user_data(CANCELLATION)) } {
            self.unseen.push_back(CANCELLATION);
            self.enter();
        }
    }

    /// Makes [`Self::event`] readable.
    pub(super) fn wake(&self) {
        // It can only fail by being readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Clears the event, and takes results: token and what the system call would have returned.
    pub(super) fn reap(&mut self, mut ended: impl FnMut(u64, i32)) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        if !self.unseen.is_empty() || self.ring.submission().cq_overflow() {
            self.enter();
        }
        let mut each = |entry: cqueue::Entry| {
            if entry.user_data() != CANCELLATION {
                ended(entry.user_data(), entry.result());
            }
        };
        self.ring.completion().for_each(&mut each);
        // What never reached the kernel never will.
        if let Some(errno) = self.broken {
            for token in self.unseen.drain(..).filter(|t| *t != CANCELLATION) {
                ended(token, -errno);
            }
        }
    }

    /// SAFETY: as [`Self::push`]. Whether there was room; there is, when nothing is unseen.
    unsafe fn add(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    fn enter(&mut self) {
        if self.broken.is_some() {
            return;
        }
        loop {
            match self.ring.submit() {
                Ok(seen) => {
                    self.refusals = 0;
                    self.unseen.drain(..seen.min(self.unseen.len()));
                    if self.unseen.is_empty() || seen == 0 {
                        break;
                    }
                }
                Err(e) => {
                    let errno = e.raw_os_error().unwrap_or(libc::EIO);
                    match errno {
                        libc::EINTR => continue,
                        libc::EAGAIN | libc::EBUSY if self.refusals < MAX_REFUSALS => {
                            self.refusals += 1;
                        }
                        _ => self.broken = Some(errno),
                    }
                    break;
                }
            }
        }
        if !self.unseen.is_empty() {
            self.wake();
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
