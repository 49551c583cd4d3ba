//! Threads that work for a migration step back for vCPUs while the guest runs, and do not while it
//! stands still: then everything waits for them. Nor do they while they hold what a writer of the
//! guest may wait for, nor for ever: where no processor is ever idle, a migration that only takes
//! what is left over would not end, and they take a small share.

//!
//! What gets only idle time may hold a lock while it gets none, and who waits for that lock waits
//! with it: page streams, and what keeps the connection alive. So what a helper does here again and
//! again takes no lock, and one that gets nowhere in the middle of its work is seen from outside
//! ([`Helpers::look_after`]).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use super::threads;

/// A thread's number in the kernel.
type Tid = libc::pid_t;

/// Threads whose priority changes together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Helpers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The guest stands still, or did.
    paused: AtomicBool,
    /// No processor was idle for so long that they take a share.
    starved: AtomicBool,
    threads: Mutex<Vec<Tid>>,
}

/// Helpers that wanted to run when they were last looked at, and how long they had run by then.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    at: Option<Instant>,
    ran: HashMap<Tid, Duration>,
}

/// How far helpers step back where they take a share: about a fifteenth of a processor that a vCPU
/// wants, too.
const NICE: i32 = 12;

/// Where a thread comes in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// After everybody: idle processors only.
    Last,
    /// With a small share.
    Behind,
    /// Beside everybody.
    Beside,
}
/// Work that takes longer than this, and ran for less than a tenth of it, was starved.
const STARVED: Duration = Duration::from_millis(20);
const RAN_AT_LEAST: u32 = 10;

impl Helpers {
    /// The calling thread is one of them, and steps back.
    pub(crate) fn join(&self) {
        // On Linux this is the calling thread's alone. Without it, only the guest is slower.
        let _ = put(0, Place::Behind);
        if can_return() {
            self.threads().push(own_tid());
            self.settle();
        }
    }

    /// The calling thread is none of them any more.
    pub(crate) fn leave(&self) {
        let thread = own_tid();
        if can_return() {
            // Not while it holds the lock.
            let _ = put(0, Place::Behind);
        }
        self.threads().retain(|t| *t != thread);
    }

    /// The guest stands still: helpers step back no more.
    pub(crate) fn hurry(&self) {
        self.0.paused.store(true, SeqCst);
        self.apply();
    }

    /// Whether no processor is idle, so that they take a share, or there are again.
    pub(crate) fn starve(&self, starved: bool) {
        if self.0.starved.swap(starved, SeqCst) != starved {
            self.apply();
        }
    }

    /// Does a piece of work. Where it had to wait for a processor for nearly all of its time, no
    /// helper waits for idle ones any more.
    pub(crate) fn work<T>(&self, f: impl FnOnce() -> T) -> T {
        let timer = WorkTimer::start();
        let result = f();
        if self.was_starved(timer.worked()) {
            // What follows takes a lock.
            let _ = put(0, Place::Behind);
            self.starve(true);
        }
        result
    }

    /// Whether helpers take a share because no processor is idle.
    pub(crate) fn were_starved(&self) -> bool {
        self.0.starved.load(SeqCst)
    }

    /// Time that all of them have run.
    pub(crate) fn ran(&self) -> Duration {
        let threads = self.threads().clone();
        let times = threads.into_iter().filter_map(threads::times);
        times.map(|times| times.ran).sum()
    }

    /// Looks whether a helper wants to run as it did at the last look, and has hardly run since.
    pub(crate) fn look_after(&self, seen: &mut Seen) {
        let threads = self.threads().clone();
        let now = Instant::now();
        let took = seen.at.map_or(Duration::ZERO, |at| now - at);
        let (mut ran_now, mut stuck) = (HashMap::new(), false);
        for tid in threads.into_iter().filter(|&tid| threads::is_runnable(tid)) {
            let Some(ran) = threads::times(tid).map(|times| times.ran) else {
                continue;
            };
            if let Some(before) = seen.ran.get(&tid) {
                let ran = ran.saturating_sub(*before);
                stuck |= self.was_starved(Worked { took, ran });
            }
            ran_now.insert(tid, ran);
        }
        if stuck {
            self.starve(true);
        }
        (seen.at, seen.ran) = (Some(now), ran_now);
    }

    /// Whether something took so long, and ran for that, as helpers get idle time only.
    fn was_starved(&self, Worked { took, ran }: Worked) -> bool {
        let was = starved(took, ran) && self.place() == Place::Last;
        if was {
            tracing::debug!(
                ?took,
                ?ran,
                "no processor is idle: compressors take a share"
            );
        }
        was
    }

    /// Does what somebody may wait for at ordinary priority. For helpers only.
    pub(crate) fn undisturbed<T>(&self, f: impl FnOnce() -> T) -> T {
        if !can_return() {
            return f();
        }
        // Whatever holds: it may not have been applied yet.
        let _ = put(0, Place::Beside);
        let result = f();
        self.settle();
        result
    }

    fn place(&self) -> Place {
        if self.0.paused.load(SeqCst) {
            Place::Beside
        } else if self.0.starved.load(SeqCst) {
            Place::Behind
        } else {
            Place::Last
        }
    }

    /// The calling thread gets the place that holds now. Whoever changes what holds does that
    /// first, and [`Self::apply`] then: what is changed after the second look is applied after it.
    fn settle(&self) {
        loop {
            let place = self.place();
            let _ = put(0, place);
            if self.place() == place {
                return;
            }
        }
    }

    /// All get the place that holds now.
    fn apply(&self) {
        for thread in &*self.threads() {
            let _ = put(*thread, self.place());
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Tid>> {
        self.0
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// Puts a thread into its place in line; 0 is the calling thread.
fn put(thread: Tid, place: Place) -> io::Result<()> {
    let (policy, nice) = match place {
        Place::Last => return set(thread, libc::SCHED_IDLE),
        Place::Behind => (libc::SCHED_OTHER, NICE),
        Place::Beside => (libc::SCHED_OTHER, 0),
    };
    set(thread, policy)?;
    // On Linux this is one thread's alone.
    rustix::process::setpriority_process(rustix::process::Pid::from_raw(thread), nice)?;
    Ok(())
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

    /// Scheduling policy and nice value of the calling thread.
    fn own_place() -> (libc::c_int, i32) {
        // SAFETY: asks about the calling thread.
        let policy = unsafe { libc::sched_getscheduler(0) };
        (policy, rustix::process::getpriority_process(None).unwrap())
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

    /// Also where a test fails: who waits for it must not wait for ever.
    struct SetAtLast<'a>(&'a AtomicBool);

    impl Drop for SetAtLast<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    /// That a thread did not run is told, not brought about: the machine may be busy or not.
    #[test]
    fn a_helper_that_wants_to_run_and_does_not_is_seen_from_outside() {
        if !can_return() {
            eprintln!("left out: this process may not leave SCHED_IDLE, so no helper steps back");
            return;
        }
        let helpers = Helpers::default();
        let (ended, joined) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _end = SetAtLast(&ended);
            scope.spawn(|| {
                helpers.join();
                joined.store(true, SeqCst);
                while !ended.load(SeqCst) {
                    std::hint::spin_loop();
                }
                helpers.leave();
            });
            while !joined.load(SeqCst) {
                std::thread::yield_now();
            }
            let mut seen = Seen::default();
            helpers.look_after(&mut seen);
            assert_eq!(seen.ran.len(), 1);
            // Long ago, and it has not run since.
            seen.at = Instant::now().checked_sub(STARVED * 2);
            seen.ran.values_mut().for_each(|ran| *ran = Duration::MAX);
            helpers.look_after(&mut seen);
            assert!(helpers.were_starved());
        });
        assert!(helpers.threads().is_empty());
    }

    #[test]
    fn a_helper_steps_back_alone_and_hurries_when_asked() {
        let helpers = Helpers::default();
        let before = own_place();
        let thread = std::thread::spawn(move || {
            helpers.join();
            let back = own_place();
            let undisturbed = helpers.undisturbed(own_place);
            assert_eq!(own_place().0, back.0);
            helpers.starve(true);
            let share = own_place();
            helpers.hurry();
            let hurried = own_place();
            assert_eq!(helpers.undisturbed(own_place), hurried);
            helpers.leave();
            assert!(helpers.threads().is_empty());
            (back, undisturbed, share, hurried)
        });
        let (back, undisturbed, share, hurried) = thread.join().unwrap();
        assert_eq!(share, (libc::SCHED_OTHER, NICE));
        if can_return() {
            assert_eq!(back.0, libc::SCHED_IDLE);
            // Not behind others on a machine that others use, too.
            assert_eq!(undisturbed, (libc::SCHED_OTHER, 0));
            assert_eq!(hurried, undisturbed);
        } else {
            assert_eq!([back, undisturbed, hurried], [share; 3]);
        }
        assert_eq!(own_place(), before, "only the helper");
    }
}
