//! A thread that looks at something again and again, until it is stopped or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread. Dropped, it is stopped and waited for. Where there can be no thread, nothing is done.
#[derive(Debug)]
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Whether it is to go on.
#[derive(Debug)]
pub(crate) struct Until(Arc<AtomicBool>);

impl Until {
    /// Rests for a while, or until it is stopped. Returns whether to go on.
    pub(crate) fn rest(&self, rest: Duration) -> bool {
        if self.goes_on() {
            std::thread::park_timeout(rest);
        }
        self.goes_on()
    }

    fn goes_on(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

impl Background {
    /// Runs `work`, which is to end soon after [`Until::rest`] has said so.
    pub(crate) fn start(name: &str, work: impl FnOnce(&Until) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Until(stop.clone());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 << 10)
            .spawn(move || work(&until))
            .ok();
        Self { stop, thread }
    }

    /// Has it end, without waiting for that.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_works_until_it_is_dropped_and_not_after() {
        let (tell, told) = std::sync::mpsc::channel();
        let background = Background::start("background", move |until| {
            while until.rest(Duration::from_micros(10)) {
                let _ = tell.send(());
            }
        });
        told.recv().unwrap();
        drop(background);
        // What was told before; then the teller is gone.
        while told.try_recv().is_ok() {}
        assert!(told.recv().is_err());
    }

    #[test]
    fn a_long_rest_ends_when_it_is_stopped() {
        let background = Background::start("background", |until| {
            assert!(!until.rest(Duration::from_secs(3600)));
        });
        background.stop();
        drop(background);
    }
}
