//! Storage that takes its time.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmferry_protocol::storage::JobId;

use crate::detached::finish_elsewhere;
use crate::{BlockBackend, Completion, FormerOwner, Geometry, Operation};

/// A backend whose operations are each kept back for a while before they are done, and cannot be
/// taken back meanwhile: a cancel has no effect before the inner backend has the operation. Stands
/// for storage that is slow and does not let go. What was submitted is done also when this is
/// dropped: by a thread of its own, as a device would.
#[derive(Debug)]
pub struct Slow {
    parts: ManuallyDrop<Parts>,
}

#[derive(Debug)]
struct Parts {
    inner: Box<dyn BlockBackend>,
    delay: Duration,
    /// In the order in which they are due.
    kept: VecDeque<(Instant, Operation)>,
    /// Operations that the inner backend has.
    below: usize,
    timer: OwnedFd,
    /// Readable when the timer or the inner backend is.
    ready: OwnedFd,
}

impl Slow {
    /// `inner`, every operation later by `delay`.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(inner: Box<dyn BlockBackend>, delay: Duration) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [timer.as_fd(), inner.ready()] {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&ready, fd, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            parts: ManuallyDrop::new(Parts {
                inner,
                delay,
                kept: VecDeque::new(),
                below: 0,
                timer,
                ready,
            }),
        })
    }
}

impl Parts {
    /// Sets the timer for what is due next, or stops it: either clears it.
    fn arm(&self) {
        let next = self.kept.front().map_or(Duration::ZERO, |(due, _)| {
            // Zero would stop it.
            due.saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1))
        });
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: next.as_secs() as i64,
                tv_nsec: next.subsec_nanos().into(),
            },
        };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time) {
            tracing::error!("a slow disk's timer cannot be set: {e}");
        }
    }

    fn hand_down(&mut self) {
        let now = Instant::now();
        while self.kept.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, operation)) = self.kept.pop_front()
        {
            self.below += 1;
            self.inner.submit(operation);
        }
        self.arm();
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        self.hand_down();
        let before = ended.len();
        self.inner.reap(ended);
        self.below = self.below.saturating_sub(ended.len() - before);
    }

    fn is_idle(&self) -> bool {
        self.kept.is_empty() && self.below == 0
    }

    /// Until all is done that was asked for.
    fn finish(mut self) {
        // Storage that is lost is not waited for.
        self.inner.hold(true);
        let mut ended = Vec::new();
        while !self.is_idle() {
            self.reap(&mut ended);
            ended.clear();
            if !self.is_idle() {
                let mut fds = [PollFd::new(&self.ready, PollFlags::IN)];
                // An interruption is as good as an event.
                let _ = poll(&mut fds, None);
            }
        }
    }
}

impl BlockBackend for Slow {
    fn geometry(&self) -> &Geometry {
        self.parts.inner.geometry()
    }

    fn submit(&mut self, operation: Operation) {
        let parts = &mut *self.parts;
        parts
            .kept
            .push_back((Instant::now() + parts.delay, operation));
        if parts.kept.len() == 1 {
            parts.arm();
        }
    }

    fn cancel(&mut self, id: JobId) {
        // One that is kept back is not known there, and stays.
        self.parts.inner.cancel(id);
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        self.parts.reap(ended);
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.parts.ready.as_fd()
    }

    fn hold(&mut self, held: bool) {
        self.parts.inner.hold(held);
    }

    fn may_move(&self) -> Result<(), String> {
        self.parts.inner.may_move()
    }

    fn inherit(&mut self) {
        self.parts.inner.inherit();
    }

    fn former_owner(&mut self) -> FormerOwner {
        self.parts.inner.former_owner()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
        let parts = unsafe { ManuallyDrop::take(&mut self.parts) };
        if parts.is_idle() {
            return;
        }
        finish_elsewhere("slow-disk-end", parts, Parts::finish);
    }
}
