//! The gate that vCPU threads pass between two pieces of work: run, pause, stop.
//!
//! One side sets what is [wanted](Gate::set) and waits until all threads stand; each thread holds
//! a [`Seat`] and asks it before every piece of work. The gate wakes threads that wait in it; it
//! does not reach a thread that is at work elsewhere (in KVM_RUN, say): that one is to be kicked
//! by its owner after `set`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Wanted {
    /// Stand still.
    Pause = 0,
    /// Work.
    Run = 1,
    /// End. Final.
    Stop = 2,
}

#[derive(Debug)]
struct Inner {
    wanted: Wanted,
    /// Threads that hold a seat.
    seats: u32,
    /// Of these, the ones that stand still.
    standing: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gate {
    inner: Mutex<Inner>,
    /// Copy of `Inner::wanted`, so that asking at full speed takes no lock.
    wanted: AtomicU8,
    /// Something else is wanted now.
    changed: Condvar,
    /// One more thread stands, or is gone.
    settled: Condvar,
}

impl Gate {
    /// A gate that wants [`Wanted::Pause`].
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                wanted: Wanted::Pause,
                seats: 0,
                standing: 0,
            }),
            wanted: AtomicU8::new(Wanted::Pause as u8),
            changed: Condvar::new(),
            settled: Condvar::new(),
        })
    }

    /// A place for one thread. It counts from here on, so take it before the thread is started:
    /// a pause then waits for threads that have yet to begin, too.
    pub(crate) fn seat(self: &Arc<Self>) -> Seat {
        self.lock().seats += 1;
        Seat {
            gate: Arc::clone(self),
        }
    }

    /// Sets what is wanted, and wakes whoever waits in the gate. After [`Wanted::Stop`] nothing
    /// else can be wanted.
    pub(crate) fn set(&self, wanted: Wanted) {
        let mut inner = self.lock();
        if inner.wanted == Wanted::Stop {
            return;
        }
        inner.wanted = wanted;
        self.wanted.store(wanted as u8, Ordering::Release);
        drop(inner);
        self.changed.notify_all();
    }

    /// What is wanted, by a glance that takes no lock.
    pub(crate) fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            0 => Wanted::Pause,
            1 => Wanted::Run,
            _ => Wanted::Stop,
        }
    }

    /// Waits until every thread stands or is gone; false where that took longer than `timeout`.
    /// All that the threads wrote before is visible to the caller then.
    pub(crate) fn wait_all_standing(&self, timeout: Duration) -> bool {
        let (inner, _) = self
            .settled
            .wait_timeout_while(self.lock(), timeout, |i| i.standing < i.seats)
            .unwrap_or_else(PoisonError::into_inner);
        inner.standing >= inner.seats
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's place in a [`Gate`]; dropping it says that the thread is gone.
#[derive(Debug)]
pub(crate) struct Seat {
    gate: Arc<Gate>,
}

impl Seat {
    /// Asked before every piece of work: true at once where to run is wanted, false where to
    /// stop; stands in between for as long as a pause is wanted.
    pub(crate) fn pass(&self) -> bool {
        match self.gate.wanted() {
            Wanted::Run => return true,
            Wanted::Stop => return false,
            Wanted::Pause => {}
        }
        let mut inner = self.gate.lock();
        inner.standing += 1;
        self.gate.settled.notify_all();
        let mut inner = self
            .gate
            .changed
            .wait_while(inner, |i| i.wanted == Wanted::Pause)
            .unwrap_or_else(PoisonError::into_inner);
        inner.standing -= 1;
        inner.wanted == Wanted::Run
    }

    /// Sleeps for `duration`, or until something else than to run is wanted. The thread does not
    /// count as standing meanwhile: it has work to finish.
    pub(crate) fn sleep(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        let mut inner = self.gate.lock();
        while inner.wanted == Wanted::Run {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self
                .gate
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.lock().seats -= 1;
        self.gate.settled.notify_all();
    }
}

/// Has the calling thread's sleeps end when they should: by default they may last 50 µs longer.
pub(crate) fn precise_sleep() {
    // SAFETY: this operation takes a number, and concerns the calling thread only. It cannot fail
    // in a way that matters.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_pause_waits_for_all_threads_and_nothing_moves_after_it() {
        let gate = Gate::new();
        let count = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (seat, count) = (gate.seat(), Arc::clone(&count));
                thread::spawn(move || {
                    while seat.pass() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        assert!(gate.wait_all_standing(LONG));
        assert_eq!(count.load(Ordering::Relaxed), 0);
        for _ in 0..500 {
            gate.set(Wanted::Run);
            gate.set(Wanted::Pause);
            assert!(gate.wait_all_standing(LONG));
            let before = count.load(Ordering::Relaxed);
            thread::yield_now();
            assert_eq!(count.load(Ordering::Relaxed), before);
        }
        gate.set(Wanted::Stop);
        gate.set(Wanted::Run);
        assert_eq!(gate.wanted(), Wanted::Stop);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(gate.wait_all_standing(Duration::ZERO));
    }

    #[test]
    fn a_sleep_ends_when_a_pause_is_wanted() {
        let gate = Gate::new();
        let seat = gate.seat();
        gate.set(Wanted::Run);
        let sleeper = thread::spawn(move || {
            while seat.pass() {
                // Far longer than the test may take.
                seat.sleep(Duration::from_secs(3600));
            }
        });
        gate.set(Wanted::Pause);
        assert!(gate.wait_all_standing(LONG));
        gate.set(Wanted::Stop);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_thread_that_does_not_stand_is_not_waited_for_for_ever_and_one_that_dies_not_at_all() {
        let gate = Gate::new();
        let seat = gate.seat();
        assert!(!gate.wait_all_standing(Duration::from_millis(1)));
        assert!(
            thread::spawn(move || {
                let _seat = seat;
                std::panic::resume_unwind(Box::new("dies"));
            })
            .join()
            .is_err()
        );
        assert!(gate.wait_all_standing(LONG));
    }
}
