//! Hosts in one process, which reach each other without a network; their VM processes are real.
// Each suite uses a part of it, and helpers of tests fail by unwrapping, as tests do.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::time::timeout;
use vmferry_service::config::built_in;
use vmferry_service::control::{Control, ControlError};
use vmferry_service::host::{Host, HostConfig, LocalPeer, Peer, PeerConnector};
use vmferry_service::model::{
    HostInfo, KnownJobs, Limits, Migration, MigrationRequest, MigrationState, Offer, Preflight,
    Reception, ReceptionRequest, ServiceEvent, SettledJobs, VmSpec, VmState,
};
use vmferry_service::telemetry::TelemetryConfig;
use vmferry_tests::crash::relay::Relay;
use vmferry_tests::hosts::kill_processes_of;
use vmferry_transports::keys::Authority;
use vmferry_vmm::api::TlsFiles;

/// Nothing here takes nearly as long: whatever does hangs.
const GUARD: Duration = Duration::from_secs(240);

/// Hosts, by the URLs of their APIs, and what is between VM processes.
#[derive(Debug, Default)]
struct Net {
    hosts: Mutex<BTreeMap<String, Arc<Host>>>,
    relays: Arc<Relays>,
}

/// Between VM processes, where that is wanted.
#[derive(Debug, Default)]
struct Relays {
    wanted: AtomicBool,
    all: Mutex<Vec<Relay>>,
}

impl PeerConnector for Net {
    fn peer(&self, url: &str) -> Result<Arc<dyn Peer>, ControlError> {
        match self.hosts.lock().unwrap().get(url) {
            Some(host) => Ok(Arc::new(Relayed {
                peer: LocalPeer(host.clone()),
                relays: self.relays.clone(),
            })),
            None => Err(ControlError::Peer(format!("{url} cannot be reached"))),
        }
    }
}

/// A host to whose VM processes leads a relay.
#[derive(Debug)]
struct Relayed {
    peer: LocalPeer,
    relays: Arc<Relays>,
}

#[async_trait]
impl Peer for Relayed {
    async fn host(&self) -> Result<HostInfo, ControlError> {
        self.peer.host().await
    }

    async fn consider(&self, offer: Offer) -> Result<Preflight, ControlError> {
        self.peer.consider(offer).await
    }

    async fn receive(&self, request: ReceptionRequest) -> Result<Reception, ControlError> {
        let mut reception = self.peer.receive(request).await?;
        if self.relays.wanted.load(Ordering::Relaxed) {
            let relay = Relay::start(reception.address.parse().unwrap()).unwrap();
            reception.address = relay.address.to_string();
            self.relays.all.lock().unwrap().push(relay);
        }
        Ok(reception)
    }

    async fn forget_reception(&self, id: &str) -> Result<(), ControlError> {
        self.peer.forget_reception(id).await
    }

    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs, ControlError> {
        self.peer.told_settled(settled).await
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value, ControlError> {
        self.peer.trace(id).await
    }
}

pub(crate) struct Lab {
    dir: TempDir,
    net: Arc<Net>,
    authority: Authority,
}

fn url(name: &str) -> String {
    format!("test://{name}")
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            net: Arc::default(),
            authority: Authority::new().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self, name: &str) -> HostConfig {
        let keys = self.path(&format!("{name}-keys"));
        let files = match keys.exists() {
            true => TlsFiles {
                ca: keys.join("ca.pem"),
                cert: keys.join(format!("{name}.pem")),
                key: keys.join(format!("{name}.key")),
            },
            false => {
                let issued = self.authority.issue(name).unwrap();
                let files = issued.write_to(&keys).unwrap();
                TlsFiles {
                    ca: files.ca,
                    cert: files.certificate,
                    key: files.key,
                }
            }
        };
        let peers = ["a", "b", "c"].into_iter().filter(|peer| *peer != name);
        HostConfig {
            name: name.to_owned(),
            state_dir: self.path(name),
            binary: env!("CARGO_BIN_EXE_vmferry-vm-process").into(),
            tls: Some(files),
            listen: [127, 0, 0, 1].into(),
            ports: (0, 0),
            advertise: None,
            files_in: None,
            limits: Limits::default(),
            defaults: built_in(),
            peers: peers.map(|peer| (peer.to_owned(), url(peer))).collect(),
            come_within_s: 30,
            remembered: 1000,
            telemetry: TelemetryConfig::default(),
        }
    }

    /// A host whose migrations get nowhere until [`Host::set_limits`], or a service without this
    /// limit, lets them go.
    pub(crate) fn holding(&self, name: &str) -> HostConfig {
        let mut config = self.config(name);
        config.limits.link_mbit = 1;
        config
    }

    pub(crate) async fn host(&self, name: &str) -> Arc<Host> {
        self.host_with(self.config(name)).await
    }

    pub(crate) async fn host_with(&self, config: HostConfig) -> Arc<Host> {
        let name = config.name.clone();
        let host = Host::start(config, self.net.clone()).await.unwrap();
        self.net
            .hosts
            .lock()
            .unwrap()
            .insert(url(&name), host.clone());
        host
    }

    /// TCP between VM processes leads through relays from now on.
    pub(crate) fn put_relays(&self) {
        self.net.relays.wanted.store(true, Ordering::Relaxed);
    }

    /// No VM process reaches another any more, through these.
    pub(crate) fn cut_relays(&self) {
        let relays = self.net.relays.all.lock().unwrap();
        assert!(!relays.is_empty());
        relays.iter().for_each(|relay| relay.cut(u32::MAX));
    }

    /// As if the service were killed: it does nothing more, and its VM processes go on.
    pub(crate) async fn kill(&self, name: &str, host: Arc<Host>) {
        self.net.hosts.lock().unwrap().remove(&url(name));
        host.abandon().await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        kill_processes_of(self.dir.path());
    }
}

/// A machine of 32 MiB that runs the built-in workload.
pub(crate) fn spec(name: &str, cmdline: &str) -> VmSpec {
    serde_json::from_value(serde_json::json!({
        "name": name, "machine": "process", "ram_mib": 32,
        "boot": {"workload": {"cmdline": cmdline}},
    }))
    .unwrap()
}

/// One that has little to do.
pub(crate) fn light(name: &str) -> VmSpec {
    spec(name, "workload=dense ws-mib=1 fill-mib=2 rate=1000 seed=3")
}

/// One that keeps a slow link busy for seconds.
pub(crate) fn busy(name: &str) -> VmSpec {
    spec(
        name,
        "workload=dense ws-mib=1 fill-mib=6 rate=100000 fill=0:0:100 seed=7",
    )
}

pub(crate) fn to(host: &str) -> MigrationRequest {
    MigrationRequest {
        to: host.to_owned(),
        ..MigrationRequest::default()
    }
}

/// Over a link of 20 Mbit/s.
pub(crate) fn slowly(host: &str) -> MigrationRequest {
    let mut request = to(host);
    request.options.link_mbit = Some(20);
    request.options.max_blackout_ms = Some(2000.0);
    request
}

/// Waits until `seen` is content with what is known of a migration; each change is looked at.
pub(crate) async fn until(
    host: &Host,
    id: &str,
    mut seen: impl FnMut(&Migration) -> bool,
) -> Migration {
    let mut events = host.events();
    let wait = async {
        let now = host.migration(id).await.unwrap();
        if seen(&now) {
            return now;
        }
        loop {
            if let ServiceEvent::Migration(m) = events.recv().await.unwrap()
                && m.id == id
                && seen(&m)
            {
                return m;
            }
        }
    };
    timeout(GUARD, wait).await.expect("it hangs")
}

/// Waits for a migration's end.
pub(crate) async fn end(host: &Host, id: &str) -> Migration {
    until(host, id, |m| m.state.is_over()).await
}

/// Waits until pages are on their way.
pub(crate) async fn under_way(host: &Host, id: &str) {
    until(host, id, |m| {
        assert!(!m.state.is_over(), "{m:?}");
        m.progress.as_ref().is_some_and(|p| p.phase == "precopy")
    })
    .await;
}

pub(crate) async fn names(host: &Host) -> Vec<String> {
    host.vms().await.into_iter().map(|vm| vm.name).collect()
}

/// The VM runs there, and its memory is what it should be.
pub(crate) async fn runs_unharmed(host: &Host, name: &str) {
    let vm = host.vm(name).await.unwrap();
    assert_eq!(vm.state, VmState::Running, "{vm:?}");
    let verdict = timeout(GUARD, host.verify(name)).await.expect("it hangs");
    assert_eq!(verdict.as_deref(), Ok("OK"));
}

/// Moves it, and expects that it arrives.
pub(crate) async fn moves(host: &Host, name: &str, request: MigrationRequest) -> Migration {
    let id = host.migrate(name, request).await.unwrap().id;
    let over = end(host, &id).await;
    assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    over
}
