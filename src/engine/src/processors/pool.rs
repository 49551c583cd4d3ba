//! How many compressors work at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the pool follows, over the last moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Processors that nobody used.
    pub(crate) idle: f64,
    /// vCPUs that waited for a processor, on average.
    pub(crate) vcpus_waited: f64,
    /// Part of the time in which others on this host waited for one, as far as that can be seen.
    pub(crate) others_waited: f64,
    /// A compressor got hardly any processor time.
    pub(crate) starved: bool,
}

/// From so many idle processors on, one more compressor works.
pub(crate) const IDLE: f64 = 0.5;
/// vCPUs that wait this much of their time are harmed: half of the compressors stop.
const HARM: f64 = 0.03;
/// So are others that wait for this much of the time.
const HARM_OTHERS: f64 = 0.1;

/// Decides how many compressors work: one more while processors are idle, half as many when vCPUs
/// or others wait. Always one, or the migration would not end; its priority is the lowest.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    threads: usize,
    active: usize,
}

impl Control {
    /// For so many threads; at first all may work, at lowest priority.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: threads.max(1),
            active: threads.max(1),
        }
    }

    pub(crate) fn next(&mut self, sample: Sample) -> usize {
        if sample.starved {
            self.active = 1;
        } else if sample.vcpus_waited > HARM || sample.others_waited > HARM_OTHERS {
            self.active = (self.active / 2).max(1);
        } else if sample.idle >= IDLE {
            self.active = (self.active + 1).min(self.threads);
        }
        self.active
    }
}

/// Lets so many threads through at a time.
#[derive(Debug)]
pub(crate) struct Gate {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    inside: usize,
    /// Most that were inside since that was last asked for.
    most: usize,
    room: Room,
}

/// What room there is for compressing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Room {
    /// Compressors that may work at a time.
    pub(crate) compressors: usize,
    /// Processors that nobody but compressors uses.
    pub(crate) spare: f64,
}

/// A thread that is inside.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a Gate);

/// A gate that changes is noticed at the latest after this.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Room {
    /// A processor for each of so many compressors.
    fn for_all(compressors: usize) -> Self {
        Self {
            compressors,
            spare: compressors as f64,
        }
    }
}

impl Gate {
    /// For so many threads, all of which may be inside.
    pub(crate) fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self {
            threads,
            state: Mutex::new(State {
                inside: 0,
                most: 0,
                room: Room::for_all(threads),
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Waits until there is room.
    pub(crate) fn enter(&self) -> Inside<'_> {
        let mut state = self.lock();
        while state.inside >= state.room.compressors {
            let waited = self.changed.wait_timeout(state, LOOK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.inside += 1;
        state.most = state.most.max(state.inside);
        Inside(self)
    }

    /// What room there is from now on; for one compressor at least.
    pub(crate) fn set(&self, room: Room) {
        let compressors = room.compressors.clamp(1, self.threads);
        self.lock().room = Room {
            compressors,
            ..room
        };
        self.changed.notify_all();
    }

    /// How many were inside at a time since this was last asked for.
    pub(crate) fn used_of_late(&self) -> usize {
        let mut state = self.lock();
        let inside = state.inside;
        std::mem::replace(&mut state.most, inside)
    }

    /// All may be inside: the guest stands still.
    pub(crate) fn open(&self) {
        self.set(Room::for_all(self.threads));
    }

    /// What room there is, as last seen.
    pub(crate) fn room(&self) -> Room {
        self.lock().room
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Sample = Sample {
        idle: 0.1,
        vcpus_waited: 0.0,
        others_waited: 0.0,
        starved: false,
    };

    #[test]
    fn it_follows_idle_processors_and_steps_back_before_the_guest() {
        let mut control = Control::new(8);
        assert_eq!(control.next(CALM), 8);
        let harmed = Sample {
            vcpus_waited: 0.2,
            idle: 2.0,
            ..CALM
        };
        assert_eq!(control.next(harmed), 4);
        assert_eq!(control.next(harmed), 2);
        assert_eq!(control.next(CALM), 2);
        let idle = Sample { idle: 1.5, ..CALM };
        assert_eq!(control.next(idle), 3);
        let starved = Sample {
            starved: true,
            ..idle
        };
        assert_eq!(control.next(starved), 1);
        for _ in 0..20 {
            control.next(idle);
        }
        let pressed = Sample {
            others_waited: 0.3,
            ..CALM
        };
        assert_eq!(control.next(pressed), 4);
        assert_eq!(control.next(idle), 5);
        for _ in 0..20 {
            control.next(idle);
        }
        assert_eq!(control.next(idle), 8);
        assert_eq!(Control::new(0).next(harmed), 1);
    }

    #[test]
    fn no_more_are_inside_than_may_be() {
        let gate = Gate::new(4);
        let room = |compressors| Room {
            compressors,
            spare: 0.0,
        };
        gate.set(room(1));
        let inside = gate.enter();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(gate.enter()));
            assert_eq!(gate.lock().inside, 1);
            drop(inside);
            other.join().unwrap();
        });
        gate.set(room(0));
        drop(gate.enter());
        gate.open();
        let all: Vec<_> = (0..4).map(|_| gate.enter()).collect();
        assert_eq!(gate.lock().inside, all.len());
        drop(all);
        assert_eq!((gate.used_of_late(), gate.used_of_late()), (4, 0));
    }
}
