//! What this host is like, and what can be had on it. Looks, and changes nothing.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

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

/// What is wrong with each disk that cannot be opened here.
async fn disks(specs: Vec<DiskSpec>) -> Vec<String> {
    let look = |spec: DiskSpec| async move {
        let name = spec.source.to_string();
        let open = move || vmferry_block::open(&spec, Role::Inspector).map(drop);
        match timeout(OPEN_WITHIN, tokio::task::spawn_blocking(open)).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(e))) => Some(chain(&e)),
            Ok(Err(e)) => Some(format!("disk '{name}': {e}")),
            Err(_) => Some(format!("disk '{name}': no answer in {OPEN_WITHIN:?}")),
        }
    };
    let looks = specs.into_iter().map(look);
    let found = futures_util::future::join_all(looks).await;
    found.into_iter().flatten().collect()
}

fn readable(what: &str, path: &str) -> Option<String> {
    let opened = File::open(Path::new(path)).and_then(|file| file.metadata());
    match opened {
        Ok(meta) if meta.is_file() => None,
        Ok(_) => Some(format!("the {what} '{path}' is no file")),
        Err(e) => Some(format!("the {what} '{path}' cannot be read: {e}")),
    }
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
            here.disks = disks(spec::disks(&offer.spec).unwrap_or_default()).await;
        }
        let files = spec::files(&offer.spec);
        here.files = files.iter().filter_map(|(w, p)| readable(w, p)).collect();
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
    use super::*;

    #[test]
    fn there_is_memory() {
        let (all, available) = memory_mib();
        assert!(all > 0 && available <= all);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named() {
        let source: vmferry_block::DiskSource = "file:/no/such.img".parse().unwrap();
        let wrong = disks(vec![source.spec()]).await;
        assert!(wrong[0].contains("/no/such.img"), "{wrong:?}");
        assert!(readable("kernel", "/").unwrap().contains("no file"));
        assert!(readable("kernel", "/no/k").unwrap().contains("/no/k"));
    }
}
