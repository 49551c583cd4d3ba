//! Threads that work for a migration step back for vCPUs while the guest runs, and do not while it
//! stands still: then everything waits for them. Nor do they while they hold what a writer of the
//! guest may wait for, nor for ever: where no processor is ever idle, a migration that only takes
//! what is left over would not end, and they take a small share.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::ClockId;

/// A thread's number in the kernel.
type Tid = libc::pid_t;

/// Threads whose priority changes together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Helpers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    threads: Vec<Tid>,
    /// The guest stands still.
    paused: bool,
    /// No processor was idle for so long that they take a share.
    starved: bool,
}

impl State {
    fn policy(&self) -> libc::c_int {
        if self.paused || self.starved {
            libc::SCHED_OTHER
        } else {
            libc::SCHED_IDLE
        }
    }

    fn apply(&self) {
        for thread in &self.threads {
            let _ = set(*thread, self.policy());
        }
    }
}

/// How far helpers step back where they take a share: about a fifteenth of a processor that a vCPU
/// wants, too.
const NICE: i32 = 12;
/// Work that takes longer than this, and ran for less than a tenth of it, was starved.
const STARVED: Duration = Duration::from_millis(20);
const RAN_AT_LEAST: u32 = 10;

impl Helpers {
    /// The calling thread is one of them, and steps back.
    pub(crate) fn join(&self) {
        let thread = own_tid();
        // On Linux this is the calling thread's alone. Without it, only the guest is slower.
        let _ = rustix::process::setpriority_process(None, NICE);
        if can_return() {
            let mut state = self.lock();
            state.threads.push(thread);
            let _ = set(thread, state.policy());
        }
    }

    /// The calling thread is none of them any more.
    pub(crate) fn leave(&self) {
        let thread = own_tid();
        self.lock().threads.retain(|t| *t != thread);
    }

    /// The guest stands still, or does not.
    pub(crate) fn pause(&self, paused: bool) {
        let mut state = self.lock();
        state.paused = paused;
        state.apply();
    }

    /// Whether no processor is idle, so that they take a share, or there are again.
    pub(crate) fn starve(&self, starved: bool) {
        let mut state = self.lock();
        if state.starved != starved {
            state.starved = starved;
            state.apply();
        }
    }

    /// Does a piece of work. Where it had to wait for a processor for nearly all of its time, no
    /// helper waits for idle ones any more.
    pub(crate) fn work<T>(&self, f: impl FnOnce() -> T) -> T {
        let timer = WorkTimer::start();
        let result = f();
        let Worked { took, ran } = timer.worked();
        if starved(took, ran) && self.steps_back() {
            tracing::info!(
                ?took,
                ?ran,
                "no processor is idle: compressors take a share"
            );
            self.starve(true);
        }
        result
    }

    /// Whether helpers take a share because no processor is idle.
    pub(crate) fn were_starved(&self) -> bool {
        self.lock().starved
    }

    fn steps_back(&self) -> bool {
        self.lock().policy() == libc::SCHED_IDLE
    }

    /// Does what somebody may wait for at ordinary priority. For helpers only.
    pub(crate) fn undisturbed<T>(&self, f: impl FnOnce() -> T) -> T {
        if !can_return() || !self.steps_back() {
            return f();
        }
        let _ = set(0, libc::SCHED_OTHER);
        let result = f();
        // What holds now: it may have been changed meanwhile.
        let state = self.lock();
        let _ = set(0, state.policy());
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn starved(took: Duration, ran: Duration) -> bool {
    took > STARVED && ran * RAN_AT_LEAST < took
}

/// How long work of the calling thread takes, and how long it runs.
pub(crate) struct WorkTimer {
    began: Instant,
    ran: Duration,
}

/// What a piece of work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worked {
    /// From beginning to end.
    pub(crate) took: Duration,
    /// On a processor.
    pub(crate) ran: Duration,
}

impl WorkTimer {
    pub(crate) fn start() -> Self {
        Self {
            began: Instant::now(),
            ran: ran(ClockId::ThreadCPUTime),
        }
    }

    pub(crate) fn worked(&self) -> Worked {
        Worked {
            took: self.began.elapsed(),
            ran: ran(ClockId::ThreadCPUTime).saturating_sub(self.ran),
        }
    }
}

/// Time that the calling thread has run, or this process, as `clock` says.
pub(super) fn ran(clock: ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn own_tid() -> Tid {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// SCHED_IDLE (man sched): runs where nobody else wants to, and the kernel knows that whoever
/// wakes up may have its processor. 0 is the calling thread.
fn set(thread: Tid, policy: libc::c_int) -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call, which changes a thread's scheduling only.
    match unsafe { libc::sched_setscheduler(thread, policy, &raw const none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process may leave SCHED_IDLE again, which needs CAP_SYS_NICE or a limit that
/// allows it. Found out once, by a thread that has nothing else to do.
fn can_return() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let there_and_back =
            || set(0, libc::SCHED_IDLE).is_ok() && set(0, libc::SCHED_OTHER).is_ok();
        let tried = std::thread::spawn(there_and_back).join();
        tried.unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_policy() -> libc::c_int {
        // SAFETY: asks about the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn work_that_waited_for_nearly_all_of_its_time_was_starved() {
        let ms = Duration::from_millis;
        assert!(starved(ms(100), ms(5)));
        assert!(!starved(ms(100), ms(50)) && !starved(ms(15), ms(0)));
        let helpers = Helpers::default();
        assert_eq!(helpers.work(|| 7), 7);
        helpers.work(|| std::thread::sleep(STARVED * 2));
        assert!(helpers.were_starved());
    }

    #[test]
    fn a_helper_steps_back_alone_and_hurries_when_asked() {
        let helpers = Helpers::default();
        let before = own_policy();
        let thread = std::thread::spawn(move || {
            helpers.join();
            let back = own_policy();
            let undisturbed = helpers.undisturbed(own_policy);
            assert_eq!(own_policy(), back);
            helpers.pause(true);
            let hurried = own_policy();
            assert_eq!(helpers.undisturbed(own_policy), hurried);
            helpers.leave();
            assert!(helpers.lock().threads.is_empty());
            (back, undisturbed, hurried)
        });
        let (back, undisturbed, hurried) = thread.join().unwrap();
        let idle = if can_return() {
            libc::SCHED_IDLE
        } else {
            libc::SCHED_OTHER
        };
        assert_eq!(back, idle);
        assert_eq!(
            (undisturbed, hurried),
            (libc::SCHED_OTHER, libc::SCHED_OTHER)
        );
        assert_eq!(own_policy(), before, "only the helper");
    }
}
