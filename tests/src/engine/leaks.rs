//! Descriptors and threads of this process: what was there before must be all that is there after.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::GUARD;

/// What was open before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaks {
    fds: usize,
    threads: usize,
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn names() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let fds = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let of_task = tasks
        .flatten()
        .filter_map(|t| fs::read_to_string(t.path().join("comm")).ok());
    let of_fd = fds.flatten().filter_map(|f| fs::read_link(f.path()).ok());
    let all = of_task.chain(of_fd.map(|p| p.display().to_string()));
    for name in all {
        *names.entry(name.trim().to_owned()).or_default() += 1;
    }
    names
}

impl Leaks {
    /// Counts.
    #[must_use]
    pub fn count() -> Self {
        Self {
            fds: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
        }
    }

    /// Returns when nothing is left but what was there at the count: threads that have been told
    /// to end, and sockets that have said good-bye, need a moment.
    ///
    /// # Panics
    /// Where something stays.
    pub async fn none(&self) {
        let give_up_at = Instant::now() + GUARD / 3;
        loop {
            let now = Self::count();
            if now.fds <= self.fds && now.threads <= self.threads {
                return;
            }
            assert!(
                Instant::now() < give_up_at,
                "left behind: before {self:?}, now {now:?}: {:#?}",
                names()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
