//! The real engine under fire: whole migrations in this process, with parts that fail on demand.
//!
//! [`Guest`] is a machine and what it says, [`Plan`] a migration, [`begin`] starts both sides of
//! it and [`Under::end`] waits for their ends. [`settle`] checks what must hold however it ended.
//! Faults are decorators: [`Script`] over a connector, [`FaultyJournal`], [`FaultyMachine`]. They
//! act on counts and names, never on time.

mod faults;
mod leaks;
mod pair;
mod parts;
mod relay;

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use faults::{FaultyConnector, Frame, PageStep, Said, Script, Step, Way};
pub use leaks::Leaks;
pub use pair::{Ended, Guest, Over, Plan, Under, begin, begin_after, has_kvm, settle, try_begin};
pub use parts::{FaultyJournal, FaultyMachine};

pub use crate::decorated::Op;

/// What a test waits for, it waits for so long at most: longer is a failure.
pub const GUARD: Duration = Duration::from_secs(60);

/// Descriptors and threads are counted for the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test as a VM process runs: actors over a runtime of several threads.
///
/// # Panics
/// Where the runtime cannot be made, and as `test` does.
pub fn run(test: impl Future<Output = ()>) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Threads of blocking calls are to be gone soon, as they are counted.
        .thread_keep_alive(Duration::from_millis(10))
        .enable_all()
        .build()
        .expect("a runtime");
    actix::System::with_tokio_rt(move || runtime).block_on(test);
}

/// What `what` comes to, unless it hangs.
///
/// # Panics
/// Where it hangs.
pub async fn guard<T>(name: &str, what: impl Future<Output = T>) -> T {
    match tokio::time::timeout(GUARD, what).await {
        Ok(value) => value,
        Err(_) => panic!("{name}: it hangs"),
    }
}
