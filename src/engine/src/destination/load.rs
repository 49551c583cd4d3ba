//! How much this side's page streams have to do, for the source: where they get no processor, it is
//! not the link that is slow.

use std::time::{Duration, Instant};

use actix::{Message, Recipient};
use vmferry_protocol::message::Load;

use crate::background::Background;
use crate::processors::threads::{self, Times};

const EVERY: Duration = Duration::from_millis(100);

/// How much they have to do.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Loaded(pub(super) Load);

/// Tells it, until it is dropped. Nothing where the runtime's threads have not the name
/// [`crate::IO_THREADS`], as in programs that have a runtime of their own.
pub(super) fn watch(streams: u16, owner: Recipient<Loaded>) -> Background {
    Background::start("load", move |until| {
        let mut before = (Instant::now(), threads::named(crate::IO_THREADS).1);
        while until.rest(EVERY) {
            let (count, times) = threads::named(crate::IO_THREADS);
            let now = Instant::now();
            let threads = count.min(usize::from(streams));
            if let Some(load) = load(before.1, times, now - before.0, threads) {
                owner.do_send(Loaded(load));
            }
            before = (now, times);
        }
    })
}

/// Between two looks, `passed` apart, at so many threads that receive pages; none where there are none.
fn load(before: Times, now: Times, passed: Duration, threads: usize) -> Option<Load> {
    let ran = now.ran.saturating_sub(before.ran);
    let waited = now.waited.saturating_sub(before.waited);
    let all = passed.as_secs_f64() * threads as f64;
    (all > 0.0).then(|| Load {
        wanted: ((ran + waited).as_secs_f64() / all * 1e3).clamp(0.0, 1e3) as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_is_what_threads_ran_and_waited_of_the_time_that_passed() {
        let at = |ran: u32, waited: u32| Times {
            ran: MS * ran,
            waited: MS * waited,
        };
        let wanted = |before, now, threads| load(before, now, MS * 100, threads).map(|l| l.wanted);
        assert_eq!(wanted(at(0, 0), at(10, 40), 1), Some(500));
        assert_eq!(wanted(at(7, 9), at(17, 49), 2), Some(250));
        assert_eq!(wanted(at(0, 0), at(300, 0), 2), Some(1000));
        // Threads that ended took their times with them.
        assert_eq!(wanted(at(50, 50), at(0, 0), 1), Some(0));
        assert_eq!(wanted(at(0, 0), at(10, 10), 0), None);
    }
}
