//! Threads that work for a migration step back for vCPUs while the guest runs, and do not while it
//! stands still: then everything waits for them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A thread's number in the kernel.
type Tid = libc::pid_t;

/// Threads whose priority changes together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Helpers {
    threads: Arc<Mutex<Vec<Tid>>>,
}

impl Helpers {
    /// The calling thread is one of them, and steps back.
    pub(crate) fn join(&self) {
        let thread = own_tid();
        self.lock().push(thread);
        set(thread, libc::SCHED_IDLE);
    }

    /// The calling thread is none of them any more.
    pub(crate) fn leave(&self) {
        let thread = own_tid();
        self.lock().retain(|t| *t != thread);
    }

    /// The guest stands still, or does not.
    pub(crate) fn hurry(&self, hurry: bool) {
        let policy = if hurry {
            libc::SCHED_OTHER
        } else {
            libc::SCHED_IDLE
        };
        for thread in self.lock().iter() {
            set(*thread, policy);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Tid>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own_tid() -> Tid {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// SCHED_IDLE (man sched): runs where nobody else wants to, and the kernel knows that whoever
/// wakes up may have its processor. Leaving it needs CAP_SYS_NICE; without that the helpers stay
/// as they are, and are slower where other guests want every processor.
fn set(thread: Tid, policy: libc::c_int) {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call, which changes a thread's scheduling only.
    if unsafe { libc::sched_setscheduler(thread, policy, &raw const none) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, policy, "a thread's scheduling stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_policy() -> libc::c_int {
        // SAFETY: asks about the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_helper_steps_back_alone_and_hurries_when_asked() {
        let helpers = Helpers::default();
        let before = own_policy();
        let thread = std::thread::spawn(move || {
            helpers.join();
            let back = own_policy();
            helpers.hurry(true);
            let hurried = own_policy();
            helpers.leave();
            assert!(helpers.lock().is_empty());
            (back, hurried)
        });
        let (back, hurried) = thread.join().unwrap();
        assert_eq!(back, libc::SCHED_IDLE);
        let may_stay = [libc::SCHED_OTHER, libc::SCHED_IDLE];
        assert!(may_stay.contains(&hurried), "{hurried}");
        assert_eq!(own_policy(), before, "only the helper");
    }
}
