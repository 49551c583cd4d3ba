//! Keeps the threads of a migration off the processors on which vCPUs run, while there are others.
//!
//! A thread that wakes up often (page streams, encryption) is put on a processor by the kernel
//! within microseconds, wherever it ran last, and a vCPU that runs there waits for it. Priorities
//! shorten that wait, they do not avoid it. So while the guest runs, every thread that is not a
//! vCPU's is kept to the processors that no busy vCPU of this process has used of late; where
//! none is left, all may run everywhere, and priorities decide ([`super::priority`]).
//!
//! Each thread's own affinity, as the operator or systemd set it, is never widened, and comes back
//! at the end. A thread that is begun meanwhile inherits what its maker has at that time: its own
//! is taken to be what the process had.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use super::threads;

/// A vCPU that ran for at least one part in so many of the time is busy.
const BUSY: u32 = 4;
/// The thread that answers write faults: the vCPU that waits for it has left its processor.
const ANSWERS: &str = "write-faults";

/// What is known of a thread.
enum Known {
    Vcpu {
        ran: Duration,
        seen: Instant,
    },
    /// Is left where it is.
    Alone,
    Steered {
        own: CpuSet,
    },
}

/// The threads of this process.
pub(super) struct Threads {
    /// What the names of vCPU threads begin with.
    vcpus: &'static str,
    /// Where threads may run that are begun later: they inherit what their maker has at that time.
    own: CpuSet,
    first: bool,
    known: HashMap<i32, Known>,
    busy: Vec<usize>,
}

impl Threads {
    pub(super) fn of(vcpus: &'static str, own: CpuSet) -> Self {
        Self {
            vcpus,
            own,
            first: true,
            known: HashMap::new(),
            busy: Vec::new(),
        }
    }

    /// Looks where vCPUs run, and moves the others away.
    pub(super) fn look(&mut self) {
        let now = threads::numbers();
        self.known.retain(|tid, _| now.contains(tid));
        let mut busy = Vec::new();
        let mut new = Vec::new();
        for tid in now {
            match self.known.get_mut(&tid) {
                Some(Known::Vcpu { ran, seen }) => {
                    let at = Instant::now();
                    let (Some(now), Some(processor)) =
                        (threads::times(tid), threads::processor(tid))
                    else {
                        continue;
                    };
                    let (ran_now, passed) = (now.ran.saturating_sub(*ran), at - *seen);
                    (*ran, *seen) = (now.ran, at);
                    if ran_now * BUSY >= passed {
                        busy.push(processor);
                    }
                }
                Some(_) => {}
                None => new.push(tid),
            }
        }
        busy.sort_unstable();
        busy.dedup();
        let moved = busy != self.busy;
        self.busy = busy;
        if moved {
            for (tid, known) in &self.known {
                if let Known::Steered { own } = known {
                    allow(*tid, &room(own, &self.busy));
                }
            }
        }
        for tid in new {
            let begun_since = (!self.first).then_some(&self.own);
            let known = first_look(tid, self.vcpus, begun_since);
            match &known {
                Some(Known::Steered { own }) => allow(tid, &room(own, &self.busy)),
                Some(_) if !self.first => allow(tid, &self.own),
                _ => {}
            }
            self.known.extend(known.map(|known| (tid, known)));
        }
        self.first = false;
    }

    /// Every thread may run again where it might before.
    pub(super) fn release(&mut self) {
        // Those that were begun since the last look, too.
        self.look();
        for (tid, known) in self.known.drain() {
            if let Known::Steered { own } = known {
                allow(tid, &own);
            }
        }
        self.busy.clear();
    }
}

/// `own` without `busy`; all of it where nothing would be left.
fn room(own: &CpuSet, busy: &[usize]) -> CpuSet {
    let mut left = *own;
    for processor in busy {
        left.unset(*processor);
    }
    if left.count() == 0 { *own } else { left }
}

fn allow(tid: i32, processors: &CpuSet) {
    // A thread that has just ended, or a cpuset that has just changed: the next look sees to it.
    if let Some(pid) = Pid::from_raw(tid) {
        let _ = sched_setaffinity(Some(pid), processors);
    }
}

/// What a thread is; where it was `begun_since`, its own processors are these.
fn first_look(tid: i32, vcpus: &str, begun_since: Option<&CpuSet>) -> Option<Known> {
    let name = threads::name(tid)?;
    if name.starts_with(vcpus) {
        let ran = threads::times(tid)?.ran;
        let seen = Instant::now();
        return Some(Known::Vcpu { ran, seen });
    }
    if name == ANSWERS {
        return Some(Known::Alone);
    }
    let own = match begun_since {
        Some(own) => *own,
        None => sched_getaffinity(Some(Pid::from_raw(tid)?)).ok()?,
    };
    Some(Known::Steered { own })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn set(processors: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        for p in processors {
            set.set(*p);
        }
        set
    }

    #[test]
    fn what_is_left_is_never_more_than_its_own_and_never_nothing() {
        let own = set(&[0, 1, 3]);
        assert!(room(&own, &[]) == own);
        assert!(room(&own, &[1, 2]) == set(&[0, 3]));
        assert!(room(&own, &[0, 1, 2, 3]) == own);
    }

    /// One that is named like a vCPU and runs all the time; the others make room, and come back.
    #[test]
    fn threads_make_room_for_a_busy_vcpu_and_come_back() {
        let before = sched_getaffinity(None).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let here = ended.clone();
        let begun = Arc::new(std::sync::Barrier::new(2));
        let named = begun.clone();
        let vcpu = std::thread::Builder::new()
            .name("pretends".to_owned())
            .spawn(move || {
                // It has its name now.
                named.wait();
                while !here.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                sched_getaffinity(None).unwrap()
            })
            .unwrap();
        begun.wait();
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        let mut threads = Threads::of("pretends", before);
        threads.look();
        while threads.busy.is_empty() {
            std::thread::yield_now();
            threads.look();
        }
        let left = room(&before, &threads.busy);
        assert!(sched_getaffinity(None).unwrap() == left);
        assert!(matches!(threads.known[&me], Known::Steered { .. }));
        // One that is begun now inherits what this one has, and gets its own back.
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let later = std::thread::spawn(move || {
            let _ = told.recv();
            sched_getaffinity(None).unwrap()
        });
        threads.release();
        assert!(sched_getaffinity(None).unwrap() == before);
        drop(tell);
        assert!(later.join().unwrap() == before);
        ended.store(true, Ordering::Relaxed);
        assert!(vcpu.join().unwrap() == before, "a vCPU is not steered");
    }
}
