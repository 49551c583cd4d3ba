//! What this host is like, and what can be had on it. Looks, and changes nothing.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;
use tokio::time::timeout;
use vmferry_block::{DiskSpec, Role};
use vmferry_engine::SOFTWARE;
use vmferry_protocol::errors::chain;
use vmferry_protocol::version;
use vmferry_transports::TlsIdentity;
use vmferry_vmm::api::TlsFiles;

use super::preflight;
use super::{Inner, lock, now_ms, spec};
use crate::control::ControlError;
use crate::model::{HostInfo, Offer, Preflight};

/// How long storage may take to be opened.
const OPEN_WITHIN: Duration = Duration::from_secs(15);

/// Versions of the protocol that are spoken here: oldest and newest.
pub(super) const PROTOCOL: (u16, u16) = (version::OLDEST, version::VERSION);

/// Nothing moves then.
const NO_CERTIFICATE: &str = "there is no certificate in the configuration (api.tls)";

/// Processor features of KVM guests here, or why there can be none. Blocks.
pub(super) fn kvm() -> Result<Vec<String>, String> {
    vmferry_machine::host_cpu_features().map_err(|e| chain(&e))
}

/// Memory of the host, and what is available of it, in MiB.
pub(super) fn memory_mib() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = |field: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(field));
        let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.map_or(0, |kib: u64| kib / 1024)
    };
    (mib("MemTotal:"), mib("MemAvailable:"))
}

/// What is wrong with certificates and key; none: nothing.
pub(super) async fn certificate(files: Option<&TlsFiles>) -> Option<String> {
    let Some(files) = files.cloned() else {
        return Some(NO_CERTIFICATE.to_owned());
    };
    let look = move || TlsIdentity::from_files(&files.ca, &files.cert, &files.key);
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(_)) => None,
        Ok(Err(e)) => Some(chain(&e)),
        Err(e) => Some(e.to_string()),
    }
}

/// Looks at something that another host names: what is wrong with it.
async fn look(
    what: String,
    at_it: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Option<String> {
    match timeout(OPEN_WITHIN, tokio::task::spawn_blocking(at_it)).await {
        Ok(Ok(found)) => found.err(),
        Ok(Err(e)) => Some(format!("{what}: {e}")),
        Err(_) => Some(format!("{what}: no answer in {OPEN_WITHIN:?}")),
    }
}

/// What is wrong with each disk that cannot be opened here, or is not for other hosts to name.
async fn disks(specs: Vec<DiskSpec>, within: Option<PathBuf>) -> Vec<String> {
    let looks = specs.into_iter().map(|spec| {
        let (what, within) = (format!("disk '{}'", spec.source), within.clone());
        let about = what.clone();
        look(what, move || {
            let named = spec.source.paths();
            let allowed = named.and_then(|paths| allowed(&paths, within.as_deref()));
            allowed.map_err(|why| format!("{about} {why}"))?;
            vmferry_block::open(&spec, Role::Inspector)
                .map(drop)
                .map_err(|e| chain(&e))
        })
    });
    let found = futures_util::future::join_all(looks).await;
    found.into_iter().flatten().collect()
}

/// What is wrong with each file that is no regular one, cannot be read here, or is not for other
/// hosts to name. Nothing is opened: opening a device may have effects, or never return.
async fn files(named: Vec<(&'static str, String)>, within: Option<PathBuf>) -> Vec<String> {
    let looks = named.into_iter().map(|(what, path)| {
        let (what, within) = (format!("the {what} '{path}'"), within.clone());
        let about = what.clone();
        look(what, move || {
            let path = PathBuf::from(path);
            allowed(std::slice::from_ref(&path), within.as_deref())
                .and_then(|()| readable(&path))
                .map_err(|why| format!("{about} {why}"))
        })
    });
    let found = futures_util::future::join_all(looks).await;
    found.into_iter().flatten().collect()
}

/// Whether all of `paths` are in the directory that other hosts may name things in.
fn allowed(paths: &[PathBuf], within: Option<&Path>) -> Result<(), String> {
    let Some(within) = within else {
        return Ok(());
    };
    let inside = |path: &PathBuf| -> std::io::Result<bool> {
        Ok(fs::canonicalize(path)?.starts_with(fs::canonicalize(within)?))
    };
    // What is elsewhere is nobody's to learn: not even whether it is there.
    match paths.iter().all(|path| inside(path).unwrap_or(false)) {
        true => Ok(()),
        false => Err(format!(
            "is not there, or not in {}, as the host's configuration (migration.files_in) wants it",
            within.display()
        )),
    }
}

fn readable(path: &Path) -> Result<(), String> {
    let unreadable = |e: &dyn std::fmt::Display| format!("cannot be read: {e}");
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err("is no file".to_owned()),
        Err(e) => return Err(unreadable(&e)),
    }
    rustix::fs::access(path, Access::READ_OK).map_err(|e| unreadable(&e))
}

impl Inner {
    /// Certificates for migrations.
    ///
    /// # Errors
    /// [`ControlError::Conflict`]: there are none.
    pub(super) fn tls(&self) -> Result<TlsFiles, ControlError> {
        let none = || ControlError::Conflict(NO_CERTIFICATE.to_owned());
        self.config.tls.clone().ok_or_else(none)
    }

    pub(super) fn info(&self) -> HostInfo {
        let (memory_mib, available_mib) = memory_mib();
        let (running, queued) = lock(&self.migrations).admission.counts();
        HostInfo {
            name: self.config.name.clone(),
            software: SOFTWARE.to_owned(),
            protocol: PROTOCOL,
            kvm_problem: self.kvm.as_ref().err().cloned(),
            cpu_features: self.kvm.clone().unwrap_or_default(),
            memory_mib,
            available_mib,
            processors: processors() as u32,
            limits: self.limits(),
            peers: lock(&self.peers).clone(),
            vms: lock(&self.vms).len() as u32,
            migrations_running: running + self.incoming() as u32,
            migrations_queued: queued,
            now_ms: now_ms(),
        }
    }

    /// All that stands against a machine of that description here.
    pub(super) async fn consider(&self, offer: &Offer) -> Preflight {
        let name = &offer.spec.name;
        let mut here = self.load(self.entries().iter());
        here.kvm.clone_from(&self.kvm);
        here.protocol = PROTOCOL;
        let taken = lock(&self.vms).get(name).cloned();
        here.name_taken =
            taken.map(|entry| format!("it is {}", super::entry::in_a_word(entry.state())));
        let dir = self.store.vm(name);
        here.spec = spec::config(&offer.spec, self.kvm.is_ok(), &dir)
            .err()
            .or_else(|| super::process::check_path(&dir).err());
        if here.spec.is_none() {
            let specs = spec::disks(&offer.spec).unwrap_or_default();
            here.disks = disks(specs, self.config.files_in.clone()).await;
        }
        here.files = files(spec::files(&offer.spec), self.config.files_in.clone()).await;
        here.certificate = certificate(self.config.tls.as_ref()).await;
        here.listen = self.cannot_listen();
        Preflight {
            problems: preflight::at_destination(&here, offer),
            ..Preflight::default()
        }
    }

    fn cannot_listen(&self) -> Option<String> {
        let at = (self.config.listen, 0);
        let bound = TcpListener::bind(at)
            .map(drop)
            .and_then(|()| UdpSocket::bind(at).map(drop));
        let error = bound.err()?;
        Some(format!("cannot listen on {}: {error}", self.config.listen))
    }
}

/// Processors that may be used.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use vmferry_block::DiskSource;

    use super::*;

    #[test]
    fn there_is_memory() {
        let (all, available) = memory_mib();
        assert!(all > 0 && available <= all);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named() {
        let source: DiskSource = "file:/no/such.img".parse().unwrap();
        let wrong = disks(vec![source.spec()], None).await;
        assert!(wrong[0].contains("/no/such.img"), "{wrong:?}");
        let named = [
            ("kernel", "/"),
            ("initrd", "/no/k"),
            ("kernel", "/dev/null"),
        ];
        let named = named.map(|(what, path)| (what, path.to_owned()));
        let wrong = files(named.to_vec(), None).await;
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong[0].contains("is no file") && wrong[1].contains("/no/k"));
    }

    #[tokio::test]
    async fn other_hosts_name_what_is_in_the_directory_for_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&inside).unwrap();
        for file in [inside.join("k"), outside.clone()] {
            fs::write(file, [0; 4096]).unwrap();
        }
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let disk = |path: &Path| DiskSource::File(path.to_owned()).spec();
        let kernel = |path: &Path| vec![("kernel", path.display().to_string())];
        let round = inside.join("../out");
        for path in [&outside, &inside.join("link"), &round] {
            let wrong = disks(vec![disk(path)], Some(inside.clone())).await;
            assert!(wrong[0].contains("migration.files_in"), "{wrong:?}");
            let wrong = files(kernel(path), Some(inside.clone())).await;
            assert!(wrong[0].contains("migration.files_in"), "{wrong:?}");
        }
        let own = inside.join("k");
        assert_eq!(files(kernel(&own), Some(inside.clone())).await, [""; 0]);
        assert_eq!(disks(vec![disk(&own)], Some(inside.clone())).await, [""; 0]);
        let socket: DiskSource = format!("nbd+unix:///?socket={}", outside.display())
            .parse()
            .unwrap();
        let wrong = disks(vec![socket.spec()], Some(inside)).await;
        assert!(wrong[0].contains("migration.files_in"), "{wrong:?}");
    }
}
