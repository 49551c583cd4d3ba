//! Processes of VMs: started so that they outlive the service, found again, ended.
//!
//! A VM process holds a lock for as long as it lives: its standard error is the log file of the
//! VM's directory, locked by the service before it starts the process. So whether one is there is
//! known without its number, and nothing is left behind by one that dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use vmferry_protocol::errors::chain;
use vmferry_vmm::SOCKET;
use vmferry_vmm::api::{Event, Request};
use vmferry_vmm::client::VmmClient;

use super::store;
use crate::rules::SOCKET_PATH;

/// Standard error of a VM process.
const LOG: &str = "vmm.log";
/// Its number, for one that does not answer.
const PID: &str = "pid";
/// Descriptors that a VM process may have open, where the host allows as many.
const DESCRIPTORS: u64 = 16 << 10;
/// How long a process may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A process that can be talked to.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) client: VmmClient,
    /// Ends with the process.
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    /// How the process ended, once it has; never for one that another service started.
    pub(super) exit: watch::Receiver<Option<String>>,
}

/// Whether a VM's directory can have a control socket.
///
/// # Errors
/// In words.
pub(super) fn check_path(dir: &Path) -> Result<(), String> {
    let bytes = dir.join(SOCKET).as_os_str().len();
    if bytes <= SOCKET_PATH {
        return Ok(());
    }
    Err(format!(
        "the path of the control socket in '{}' would have {bytes} bytes, {SOCKET_PATH} are \
         possible: choose a shorter name, or a state directory with a shorter path",
        dir.display()
    ))
}

fn open_log(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join(LOG))
}

/// Whether the process of a VM's directory is there. Blocks for microseconds.
pub(super) fn is_there(dir: &Path) -> bool {
    let Ok(log) = File::open(dir.join(LOG)) else {
        return false;
    };
    flock(&log, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Starts the process of a VM's directory, and connects to it.
///
/// # Errors
/// In words, with what the process said.
pub(super) async fn start(binary: &Path, dir: &Path) -> Result<Running, String> {
    check_path(dir)?;
    let log = open_log(dir).map_err(|e| format!("its log file: {e}"))?;
    flock(&log, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| "its process is there already".to_owned())?;
    if let Err(e) = fs::remove_file(dir.join(SOCKET))
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(format!("a control socket that was left behind: {e}"));
    }
    // The number of an earlier process may be anybody's by now.
    let _ = fs::remove_file(dir.join(PID));
    let mut command = Command::new(binary);
    command
        .args(["vmm", "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    // SAFETY: between fork and exec only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(stand_alone) };
    let mut child = command
        .spawn()
        .map_err(|e| format!("'{}' cannot be started: {e}", binary.display()))?;
    // It holds the other copies of the log file, which must go.
    drop(command);
    if let Some(pid) = child.id()
        && let Err(error) = fs::write(dir.join(PID), pid.to_string())
    {
        tracing::warn!(%error, "the number of a VM process could not be noted");
    }
    let ready = timeout(PATIENCE, ready(&mut child)).await;
    let connected = match ready {
        Ok(true) => connect(dir).await,
        Ok(false) => Err("its process ended before it was ready".to_owned()),
        Err(_) => Err(format!("its process is not ready after {PATIENCE:?}")),
    };
    let (client, events) = match connected {
        Ok(connected) => connected,
        Err(why) => {
            let _ = child.kill().await;
            let words = store::tail(&dir.join(LOG), 2000).map_or_else(|_| String::new(), |t| t.0);
            let last = words.lines().last().unwrap_or("nothing");
            return Err(format!("{why}; the last that it said: {last}"));
        }
    };
    let (ended, exit) = watch::channel(None);
    // It must be waited for, whoever listens.
    tokio::spawn(async move {
        let how = match child.wait().await {
            Ok(status) => format!("its process ended: {status}"),
            Err(e) => format!("its process is gone: {e}"),
        };
        ended.send_replace(Some(how));
    });
    Ok(Running {
        client,
        events,
        exit,
    })
}

/// A process of its own session, which no signal to the service's group reaches.
fn stand_alone() -> io::Result<()> {
    rustix::process::setsid()?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // A core would hold the guest's memory.
    rustix::process::setrlimit(Resource::Core, none)?;
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let files = Rlimit {
        current: Some(maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS))),
        maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, files)?;
    Ok(())
}

/// Whether a process is that of a VM's directory: numbers are used again.
fn is_of(pid: u32, dir: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command
        .split(|b| *b == 0)
        .any(|word| word == dir.as_os_str().as_encoded_bytes())
}

async fn ready(child: &mut Child) -> bool {
    let mut line = String::new();
    match child.stdout.take() {
        // The pipe is closed then: the process says nothing more on it.
        Some(stdout) => {
            let read = BufReader::new(stdout).read_line(&mut line).await;
            read.is_ok() && line.trim() == "ready"
        }
        None => false,
    }
}

async fn connect(dir: &Path) -> Result<(VmmClient, mpsc::UnboundedReceiver<Event>), String> {
    let (client, events) = VmmClient::connect(&dir.join(SOCKET))
        .await
        .map_err(|e| chain(&e))?;
    client
        .call(Request::Subscribe)
        .await
        .map_err(|e| chain(&e))?;
    Ok((client, events))
}

/// Connects to the process of a VM's directory that another service started; none where there is
/// no process.
///
/// # Errors
/// In words: it is there and does not answer.
pub(super) async fn find(dir: &Path) -> Result<Option<Running>, String> {
    let began = Instant::now();
    while is_there(dir) {
        let tried = timeout(PATIENCE, connect(dir))
            .await
            .unwrap_or_else(|_| Err("it does not answer".to_owned()));
        match tried {
            Ok((client, events)) => {
                return Ok(Some(Running {
                    client,
                    events,
                    exit: watch::channel(None).1,
                }));
            }
            // It may just be starting, or ending.
            Err(_) if began.elapsed() < PATIENCE => sleep(LOOK_EVERY).await,
            Err(why) => return Err(why),
        }
    }
    Ok(None)
}

/// Ends the process of a VM's directory, by force where it does not listen. Returns when it is
/// gone.
///
/// # Errors
/// In words: it cannot be ended.
pub(super) async fn end(dir: &Path, client: Option<&VmmClient>) -> Result<(), String> {
    if let Some(client) = client
        && timeout(PATIENCE, client.call(Request::Shutdown))
            .await
            .is_ok()
        && gone(dir).await
    {
        return Ok(());
    }
    if !is_there(dir) {
        return Ok(());
    }
    let noted = || fs::read_to_string(dir.join(PID)).ok()?.trim().parse().ok();
    let pid = client.and_then(VmmClient::pid).or_else(noted);
    let pid = pid.filter(|pid| is_of(*pid, dir));
    let pid = pid.and_then(|pid: u32| Pid::from_raw(i32::try_from(pid).ok()?));
    let Some(pid) = pid else {
        return Err(format!(
            "its process does not answer, and nobody knows its number: find what has '{}' open \
             (fuser), and end that",
            dir.join(LOG).display()
        ));
    };
    rustix::process::kill_process(pid, Signal::KILL)
        .map_err(|e| format!("its process cannot be ended: {e}"))?;
    match gone(dir).await {
        true => Ok(()),
        false => Err("its process does not end, even by force: the kernel holds it".to_owned()),
    }
}

/// Waits for the process of a VM's directory to be gone, not for ever; whether it is.
pub(super) async fn gone(dir: &Path) -> bool {
    let began = Instant::now();
    while is_there(dir) {
        if began.elapsed() > PATIENCE {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_in_words() {
        assert_eq!(check_path(Path::new("/tmp")), Ok(()));
        let long = format!("/{}", "x".repeat(100));
        assert!(check_path(Path::new(&long)).unwrap_err().contains("107"));
    }

    #[tokio::test]
    async fn a_process_that_is_not_one_says_what_happened() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = start(Path::new("/bin/false"), dir.path())
            .await
            .unwrap_err();
        assert!(wrong.contains("before it was ready"), "{wrong}");
        assert!(!is_there(dir.path()));
        let wrong = start(Path::new("/no/such/file"), dir.path())
            .await
            .unwrap_err();
        assert!(wrong.contains("/no/such/file"), "{wrong}");
        end(dir.path(), None).await.unwrap();
        assert!(find(dir.path()).await.unwrap().is_none());
    }
}
