//! The supervisor: one VM process per machine, and the migrations between hosts.
//!
//! Nothing that a guest needs is in this process. What it has to know is in files under the state
//! directory, and the rest it asks the VM processes for: a service that was killed is followed by
//! one that takes up everything where it is. `vms/NAME/` is a VM's own directory (description,
//! control socket, journal, consoles, the ends of its migrations), `migrations/ID/` what is kept of
//! a migration, `drain.json` the last drain.

mod admission;
mod adopt;
mod decide;
mod depart;
mod drain;
mod drains;
mod entry;
mod facts;
mod migrations;
mod peers;
mod preflight;
mod process;
mod receive;
mod settling;
mod spec;
mod store;
mod telling;
mod vms;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use vmferry_engine::report::MigrationReport;
use vmferry_vmm::api::TlsFiles;

use crate::control::{Control, ControlError};
use crate::model::{
    ConsoleOutput, Decision, Drain, DrainRequest, HostInfo, KnownJobs, Limits, Migration,
    MigrationOptions, MigrationRequest, MigrationStarted, Offer, Preflight, Reception,
    ReceptionRequest, ServiceEvent, SettledJobs, Vm, VmSpec,
};
use crate::telemetry::TelemetryConfig;
use drains::Draining;
use entry::Entry;
use migrations::Registry;
use store::Store;
use telling::Telling;

pub use peers::{LocalPeer, Peer, PeerConnector};
pub use store::VMS;

type Result<T> = std::result::Result<T, ControlError>;

/// Events that a slow listener may be behind.
const EVENTS_KEPT: usize = 4096;

/// What a host is, and where everything is.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Its name: what its certificate is for.
    pub name: String,
    /// Where it keeps everything; made if need be, entered by its owner only.
    pub state_dir: PathBuf,
    /// What is started as `BINARY vmm --dir DIR`.
    pub binary: PathBuf,
    /// Certificates, for migrations from VM process to VM process; without, there are none.
    pub tls: Option<TlsFiles>,
    /// Address that VM processes listen on for migrations.
    pub listen: IpAddr,
    /// First and last port that they take; 0 and 0: any.
    pub ports: (u16, u16),
    /// The address as other hosts see it, where it is another.
    pub advertise: Option<IpAddr>,
    /// What files of machines from other hosts have to be in, if anything.
    pub files_in: Option<PathBuf>,
    /// What it allows, until [`Host::set_limits`].
    pub limits: Limits,
    /// How machines are moved, where a request does not say.
    pub defaults: MigrationOptions,
    /// Hosts that it knows, until [`Host::set_peers`]: name → URL of the API.
    pub peers: BTreeMap<String, String>,
    /// How long a source may take to come once a VM process waits for it, in seconds.
    pub come_within_s: u64,
    /// Migrations that are over and remembered, with their reports and traces.
    pub remembered: usize,
    /// Where traces go.
    pub telemetry: TelemetryConfig,
}

/// Why a host could not begin; in words, with what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct StartError(pub String);

/// A host. Dropping it ends nothing but itself: VM processes and their migrations go on.
pub struct Host(Arc<Inner>);

/// What its tasks share.
pub(crate) struct Inner {
    config: HostConfig,
    store: Store,
    connector: Arc<dyn PeerConnector>,
    limits: Mutex<Limits>,
    peers: Mutex<BTreeMap<String, String>>,
    /// Processor features of KVM guests, or why there can be none.
    kvm: std::result::Result<Vec<String>, String>,
    vms: Mutex<BTreeMap<String, Arc<Entry>>>,
    migrations: Mutex<Registry>,
    /// Something has changed that lets migrations begin.
    may_begin: Notify,
    /// Something has changed that the bandwidth of migrations depends on.
    unbalanced: Notify,
    drain: Mutex<Option<Draining>>,
    /// A drain may have something to do.
    drain_on: Notify,
    events: broadcast::Sender<ServiceEvent>,
    telling: Telling,
    began: Instant,
    /// None when it has been abandoned.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.0.config.name;
        f.debug_struct("Host")
            .field("name", name)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Begins, and takes up everything that an earlier service has left: returns when each VM
    /// process that is there has been asked how it is. Inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]: the state directory cannot be used, or is in use.
    pub async fn start(
        config: HostConfig,
        connector: Arc<dyn PeerConnector>,
    ) -> std::result::Result<Arc<Self>, StartError> {
        if config.listen.is_unspecified() && config.advertise.is_none() {
            return Err(StartError(format!(
                "migrations are listened for on {}: say by which address other hosts reach this \
                 one",
                config.listen
            )));
        }
        let telling = Telling::start(&config.telemetry, &config.name).map_err(StartError)?;
        let store = Store::open(&config.state_dir).map_err(StartError)?;
        let kvm = tokio::task::spawn_blocking(facts::kvm)
            .await
            .unwrap_or_else(|e| Err(e.to_string()));
        let host = Self(Arc::new(Inner {
            limits: Mutex::new(config.limits.clone()),
            peers: Mutex::new(config.peers.clone()),
            store,
            connector,
            kvm,
            vms: Mutex::default(),
            migrations: Mutex::default(),
            may_begin: Notify::new(),
            unbalanced: Notify::new(),
            drain: Mutex::default(),
            drain_on: Notify::new(),
            events: broadcast::Sender::new(EVENTS_KEPT),
            telling,
            began: Instant::now(),
            tasks: Mutex::new(Some(JoinSet::new())),
            config,
        }));
        let inner = &host.0;
        inner.adopt_all().await;
        inner.spawn(depart::admit(inner.clone()));
        inner.spawn(depart::balance(inner.clone()));
        inner.spawn(settling::carry(inner.clone()));
        Ok(Arc::new(host))
    }

    /// Other limits, from now on. What is under way goes on.
    pub fn set_limits(&self, limits: Limits) {
        *lock(&self.0.limits) = limits;
        self.0.may_begin.notify_one();
        self.0.unbalanced.notify_one();
    }

    /// Other hosts that it knows, from now on.
    pub fn set_peers(&self, peers: BTreeMap<String, String>) {
        *lock(&self.0.peers) = peers;
    }

    /// Waits until the spans of migrations that are over are sent, for as long as `at_most`.
    pub async fn flush_spans(&self, at_most: Duration) -> bool {
        self.0.telling.exporter.flush(at_most).await
    }

    /// Ends everything that this does, and nothing else: returns when it is over. Whoever calls
    /// afterwards is told so. With the last handle the state directory is free for another.
    pub async fn abandon(&self) {
        let tasks = lock(&self.0.tasks).take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    /// Carries a call out to its end, whether or not the caller waits for it.
    async fn call<T, F>(&self, f: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let call = f(self.0.clone());
        self.0.spawn(async move {
            let _ = done.send(call.await);
        });
        let over = || {
            Err(ControlError::Failed(
                "the host service is ending".to_owned(),
            ))
        };
        result.await.unwrap_or_else(|_| over())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Tasks hold what they share: they would live for ever.
        lock(&self.0.tasks).take();
    }
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *lock(&self.tasks) {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    fn tell(&self, event: ServiceEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    fn limits(&self) -> Limits {
        lock(&self.limits).clone()
    }

    fn entry(&self, name: &str) -> Result<Arc<Entry>> {
        let entry = lock(&self.vms).get(name).cloned();
        entry.ok_or_else(|| ControlError::NotFound(format!("there is no VM called {name:?} here")))
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.vms).values().cloned().collect()
    }
}

/// Locks `mutex`; what it guards is good whatever a task that panicked was about to do.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Microseconds since 1970.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_micros() as u64)
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    now_us() / 1000
}

#[async_trait]
impl Control for Host {
    async fn host(&self) -> HostInfo {
        self.0.info()
    }

    async fn vms(&self) -> Vec<Vm> {
        self.0.entries().iter().map(|entry| entry.vm()).collect()
    }

    async fn vm(&self, name: &str) -> Result<Vm> {
        Ok(self.0.entry(name)?.vm())
    }

    async fn create(&self, spec: VmSpec) -> Result<Vm> {
        self.call(|inner| async move { inner.create(spec).await })
            .await
    }

    async fn pause(&self, name: &str) -> Result<Vm> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.pause(&entry).await })
            .await
    }

    async fn resume(&self, name: &str) -> Result<Vm> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.resume(&entry).await })
            .await
    }

    async fn stop(&self, name: &str) -> Result<Vm> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.stop(&entry).await })
            .await
    }

    async fn start(&self, name: &str) -> Result<Vm> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.start(&entry).await })
            .await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.delete(&entry).await })
            .await
    }

    async fn verify(&self, name: &str) -> Result<String> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.verify(&entry).await })
            .await
    }

    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.settle_storage(&entry, nobody_else_writes).await })
            .await
    }

    async fn decide(&self, name: &str, decision: Decision) -> Result<()> {
        let entry = self.0.entry(name)?;
        self.call(|inner| async move { inner.decide(&entry, decision).await })
            .await
    }

    async fn console(&self, name: &str, most_bytes: u64) -> Result<ConsoleOutput> {
        let entry = self.0.entry(name)?;
        vms::console(&entry, most_bytes).await
    }

    async fn preflight(&self, name: &str, request: &MigrationRequest) -> Result<Preflight> {
        let (entry, request) = (self.0.entry(name)?, request.clone());
        self.call(|inner| async move { inner.preflight(&entry, &request).await })
            .await
    }

    async fn migrate(&self, name: &str, request: MigrationRequest) -> Result<MigrationStarted> {
        let id = self.0.migrate(&self.0.entry(name)?, request)?;
        Ok(MigrationStarted { id })
    }

    async fn migrations(&self) -> Vec<Migration> {
        lock(&self.0.migrations).list()
    }

    async fn migration(&self, id: &str) -> Result<Migration> {
        self.0.migration(id)
    }

    async fn report(&self, id: &str) -> Result<MigrationReport> {
        self.0.kept_file(id, migrations::REPORT).await
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        self.0.trace(id).await
    }

    async fn cancel(&self, id: &str) -> Result<Migration> {
        let id = id.to_owned();
        self.call(|inner| async move { inner.cancel(&id).await })
            .await
    }

    async fn drain(&self, request: DrainRequest) -> Result<Drain> {
        self.0.drain(request)
    }

    async fn drain_state(&self) -> Result<Drain> {
        self.0.drain_state()
    }

    async fn cancel_drain(&self) -> Result<Drain> {
        self.call(|inner| async move { inner.cancel_drain().await })
            .await
    }

    async fn consider(&self, offer: Offer) -> Result<Preflight> {
        self.call(|inner| async move { Ok(inner.consider(&offer).await) })
            .await
    }

    async fn receive(&self, request: ReceptionRequest) -> Result<Reception> {
        self.call(|inner| async move { inner.receive(request).await })
            .await
    }

    async fn forget_reception(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.call(|inner| async move { inner.forget_reception(&id).await })
            .await
    }

    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs> {
        self.0.told_settled(settled).await
    }

    fn events(&self) -> broadcast::Receiver<ServiceEvent> {
        self.0.events.subscribe()
    }

    async fn metrics(&self) -> String {
        self.0.metrics().await
    }
}
