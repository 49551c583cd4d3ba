//! Host services as processes of the real binary, on one machine: each with a directory, a
//! certificate and an address of the loopback network of its own.

pub mod fleet;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use vmferry_service::api::types::{StreamEvent, StreamFrame};
use vmferry_service::client::{ApiClient, EventStream};
use vmferry_service::model::{Drain, Migration, ServiceEvent, Vm};
use vmferry_transports::keys::Authority;

/// Nothing here takes nearly as long: whatever does hangs.
const GUARD: Duration = Duration::from_secs(300);
const PORT: u16 = 7443;
/// Labs of this process; each has a network of its own.
static LABS: AtomicU8 = AtomicU8::new(1);

/// A directory in which hosts are, all certified by one authority.
pub struct Hosts {
    binary: PathBuf,
    // Before the directory, in which the processes of machines are named.
    hosts: BTreeMap<String, HostService>,
    dir: TempDir,
}

/// A host; its service may run or not.
pub struct HostService {
    /// Its name.
    pub name: String,
    dir: PathBuf,
    binary: PathBuf,
    child: Option<Child>,
}

/// An address of the loopback network, 127.x.y.0 by process: whoever else tests here has another.
#[must_use]
pub fn own_address(last: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high.max(1), low, last)
}

impl Hosts {
    /// Hosts of these names, which know each other; their services do not run yet. `more` is
    /// added to each configuration.
    ///
    /// # Panics
    /// If files cannot be written.
    #[must_use]
    pub fn new(binary: &Path, names: &[&str], more: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vmf")
            .tempdir()
            .expect("a directory");
        let authority = Authority::new().expect("a key");
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let at = |host: usize| own_address(lab.wrapping_mul(8) + host as u8 + 1);
        let hosts = names.iter().enumerate().map(|(n, name)| {
            let own = dir.path().join(name);
            let here = at(n).to_string();
            let keys = authority.issue_for(name, &[&here]).expect("a certificate");
            keys.write_to(&own).expect("written");
            let mut config = format!(
                "[host]\nname = \"{name}\"\nstate_dir = \"state\"\n\
                 [api]\nsocket = \"api.sock\"\nlisten = \"{here}:{PORT}\"\n\
                 [api.tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n"
            );
            for (other, peer) in names.iter().enumerate().filter(|(o, _)| *o != n) {
                let url = format!("https://{}:{PORT}", at(other));
                config += &format!("[peers.{peer}]\nurl = \"{url}\"\n");
            }
            fs::write(own.join("host.toml"), config + more).expect("written");
            let host = HostService {
                name: (*name).to_owned(),
                dir: own,
                binary: binary.to_owned(),
                child: None,
            };
            ((*name).to_owned(), host)
        });
        Self {
            binary: binary.to_owned(),
            hosts: hosts.collect(),
            dir,
        }
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn host(&mut self, name: &str) -> &mut HostService {
        self.hosts.get_mut(name).expect("one of the names given")
    }

    /// Two of them at once.
    ///
    /// # Panics
    /// If there are not these two.
    pub fn pair(&mut self, one: &str, other: &str) -> (&mut HostService, &mut HostService) {
        let mut hosts = self.hosts.iter_mut();
        let mut found = BTreeMap::new();
        hosts.by_ref().for_each(|(name, host)| {
            found.insert(name.as_str(), host);
        });
        let mut take = |name| found.remove(name).expect("one of the names given");
        (take(one), take(other))
    }

    /// A directory for whatever else a test needs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }
}

impl HostService {
    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("host.toml")
    }

    /// The address of its API on this machine, as the command line takes it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.dir.join("api.sock").display())
    }

    /// A file of its state directory.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        self.dir.join("state").join(name)
    }

    /// A client on its socket.
    ///
    /// # Panics
    /// Never: there is nothing to be wrong with the address.
    #[must_use]
    pub fn client(&self) -> ApiClient {
        ApiClient::new(&self.address(), None).expect("an address")
    }

    /// Starts its service, and returns when that answers.
    ///
    /// # Panics
    /// If it does not, with the end of its log.
    pub async fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("serve.log"))
            .expect("a log");
        let child = Command::new(&self.binary)
            .args(["serve", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
        let client = self.client();
        let answers = async {
            while client.health().await.is_err() {
                // There is nothing to be told by that it listens.
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(GUARD, answers).await.is_err() {
            panic!("{} does not answer:\n{}", self.name, self.log());
        }
    }

    /// What its service has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("serve.log")).unwrap_or_default()
    }

    /// The service's process, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the service (SIGKILL); VM processes stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the service as a service manager does; whether it ended well.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stop(&mut self) -> bool {
        let mut child = self.child.take().expect("it runs");
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).expect("it is ours");
        child.wait().is_ok_and(|status| status.success())
    }

    /// Resident memory of the service, now and at most, in MiB.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn memory_mib(&self) -> (u64, u64) {
        let pid = self.pid().expect("it runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let kib = |field: &str| -> u64 {
            let line = status.lines().find_map(|l| l.strip_prefix(field));
            let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
            kib.expect("Linux tells")
        };
        (kib("VmRSS:") >> 10, kib("VmHWM:") >> 10)
    }

    /// What happens, from here on; first what there is.
    ///
    /// # Panics
    /// If the service does not answer.
    pub async fn events(&self) -> Events {
        let stream = self.client().events().await.expect("it answers");
        Events { stream }
    }
}

/// What happens at a host.
pub struct Events {
    stream: EventStream,
}

impl Events {
    /// The next of them; none where the service has gone.
    ///
    /// # Panics
    /// If nothing happens for minutes.
    pub async fn next(&mut self) -> Option<ServiceEvent> {
        loop {
            match timeout(GUARD, self.stream.next()).await.expect("it hangs") {
                Some(Ok(StreamEvent::Change(event))) => return Some(event),
                Some(Ok(StreamEvent::Frame(StreamFrame::Snapshot(all)))) => {
                    // As if it had just happened: a drain is over or not.
                    if let Some(drain) = all.drain {
                        return Some(ServiceEvent::Drain(drain));
                    }
                }
                Some(Ok(StreamEvent::Frame(StreamFrame::Lagged(_)))) => panic!("too slow"),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Waits for the end of the drain under way.
    ///
    /// # Panics
    /// If the service goes.
    pub async fn drained(&mut self) -> Drain {
        loop {
            match self.next().await.expect("the service runs") {
                ServiceEvent::Drain(drain) if drain.over => return drain,
                _ => {}
            }
        }
    }
}

/// Waits for the end of a migration.
///
/// # Panics
/// If it does not end, or the service goes.
pub async fn ended(client: &ApiClient, id: &str) -> Migration {
    let mut stream = client.events().await.expect("it answers");
    let wait = async {
        loop {
            match stream.next().await.expect("it runs").expect("it answers") {
                StreamEvent::Frame(StreamFrame::Snapshot(all)) => {
                    let over = |m: &Migration| m.id == id && m.state.is_over();
                    if let Some(m) = all.migrations.into_iter().find(over) {
                        return m;
                    }
                }
                StreamEvent::Change(ServiceEvent::Migration(m))
                    if m.id == id && m.state.is_over() =>
                {
                    return m;
                }
                _ => {}
            }
        }
    };
    timeout(GUARD, wait).await.expect("it hangs")
}

/// Names of the machines of a host that are not elsewhere already.
///
/// # Panics
/// If the service does not answer.
pub async fn machines(client: &ApiClient) -> Vec<Vm> {
    client.vms().await.expect("it answers")
}

impl Drop for HostService {
    fn drop(&mut self) {
        self.kill();
        kill_processes_of(&self.dir);
    }
}

/// Kills (SIGKILL) every process that was started for something under `dir`: that names it on its
/// command line, or works in it. VM processes outlive whoever started them, also a failed test.
pub fn kill_processes_of(dir: &Path) {
    let own = std::process::id();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for number in numbers.filter(|number| *number != own) {
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| is_of(number, dir)) {
            // One that has ended by itself is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn is_of(pid: u32, dir: &Path) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let place = fs::read_link(format!("/proc/{pid}/cwd"));
    place.is_ok_and(|place| place.starts_with(dir))
        || String::from_utf8_lossy(&words).contains(&*dir.to_string_lossy())
}
