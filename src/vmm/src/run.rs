//! The process around the machine: runtime, control socket, journal, its end.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot};
use vmferry_journal::{JournalError, SledJournal};

use crate::server;
use crate::vm::Vm;

/// Name of the control socket in the VM's directory.
pub const SOCKET: &str = "control.sock";
/// Name of the journal's directory in it.
pub const JOURNAL: &str = "journal";
/// What is printed on standard output when the control socket can be connected to.
const READY: &str = "ready";
/// Events that a slow subscriber may be behind.
const EVENTS_KEPT: usize = 1024;
/// A thread that was needed to wait for something stays for so long.
const IDLE_THREADS_FOR: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The VM's own directory, which exists.
    pub dir: PathBuf,
    /// End when standard input ends: whoever started the process holds the other end.
    pub until_stdin_ends: bool,
}

/// Why the process could not begin.
#[derive(Debug, Error)]
pub enum RunError {
    /// No control socket.
    #[error("cannot listen on the control socket '{path}'")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// No journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

/// Runs a VM process until it is told to end. Prints `ready` on standard output when it can be
/// talked to.
///
/// # Errors
/// [`RunError`]; nothing was begun then.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 8))
        .thread_name(vmferry_engine::IO_THREADS)
        .on_thread_start(step_back)
        .thread_keep_alive(IDLE_THREADS_FOR)
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let system = actix::System::with_tokio_rt(move || runtime);
    system.block_on(serve(options))
}

/// How far the threads that encrypt and carry pages step back for vCPUs.
const NICE: i32 = 10;

/// The calling thread runs after vCPUs that want the same processor.
fn step_back() {
    // On Linux this is the calling thread's alone. Without it, only the guest is slower.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "page streams run at the priority of vCPUs");
    }
}

async fn serve(options: &RunOptions) -> Result<(), RunError> {
    let path = options.dir.join(SOCKET);
    let listener = server::bind(&path).map_err(|source| RunError::Socket {
        path: path.clone(),
        source,
    })?;
    let journal = Arc::new(SledJournal::open(&options.dir.join(JOURNAL))?);
    let (asked, requests) = mpsc::channel(16);
    let events = broadcast::Sender::new(EVENTS_KEPT);
    tokio::spawn(server::serve(listener, asked, events.clone()));
    let alone = options.until_stdin_ends.then(stdin_ends);
    println!("{READY}");
    let vm = Vm::new(options.dir.clone(), journal, events).run(requests);
    if let Some(alone) = alone {
        tokio::select! {
            () = vm => {}
            () = alone => tracing::info!("whoever started this process has gone: ending"),
        }
    } else {
        vm.await;
    }
    remove(&path);
    Ok(())
}

/// Resolves when standard input ends. By a thread of its own, started at once: the runtime would
/// wait for one of its own at the end.
fn stdin_ends() -> impl Future<Output = ()> {
    let (ended, end) = oneshot::channel();
    let read = move || {
        let mut buffer = [0; 64];
        while matches!(io::stdin().read(&mut buffer), Ok(1..)) {}
        let _ = ended.send(());
    };
    let started = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read);
    async move {
        match started {
            Ok(_) => drop(end.await),
            Err(error) => {
                tracing::warn!(%error, "the end of standard input will not be noticed");
                std::future::pending().await
            }
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "the control socket stays behind");
    }
}
