//! `vmferry serve`: the host service as a process, from its configuration to its end.

mod log;
mod peer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use vmferry_vmm::api::TlsFiles;

use crate::api::{self, ApiHandle, Listen, ListenError, TlsListen};
use crate::config::{Config, ConfigProblems, Source, Tls, watch_limits};
use crate::host::{Host, HostConfig, StartError};
use crate::systemd::Notifier;
use crate::telemetry::TelemetryConfig;
use log::Filter;
use peer::Network;

/// How long spans may take to leave when the service ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// Threads of the service, beside those that answer the API.
const THREADS: usize = 2;

/// Why the service could not begin, or ended by itself; in words, with what to do.
#[derive(Debug, Error)]
pub enum ServeError {
    /// What is wrong with the configuration.
    #[error("{0}")]
    Config(#[from] ConfigProblems),
    /// The state directory, or the collector's address.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The API.
    #[error("the API does not listen")]
    Listen(#[from] ListenError),
    /// The system refuses something that every process has.
    #[error("the host service cannot go on")]
    System(#[from] io::Error),
}

/// Serves until it is told to end (SIGTERM, SIGINT). `binary` is started as `BINARY vmm` for each
/// machine. VM processes and their migrations go on, whatever the end.
///
/// # Errors
/// [`ServeError`].
pub fn run(source: Source, binary: PathBuf) -> Result<(), ServeError> {
    let config = source.load()?;
    let filter = log::start(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(source, config, filter, binary));
    // What still reads files for somebody is not waited for.
    runtime.shutdown_background();
    served
}

async fn serve(
    source: Source,
    config: Config,
    filter: Filter,
    binary: PathBuf,
) -> Result<(), ServeError> {
    let mut ends = Ends::listen()?;
    let notifier = Notifier::from_environment();
    // Other hosts' APIs know this one by the certificate of its own.
    let network = Network::new(
        config
            .api
            .tls
            .as_ref()
            .or(config.migration_tls())
            .map(files),
    );
    let started = Host::start(host_config(&config, binary), Arc::new(network));
    let host = tokio::select! {
        host = started => host?,
        () = ends.any() => return Ok(()),
    };
    let mut api = api::serve(host.clone(), listen(&config))?;
    let (holds, changes) = watch::channel(Arc::new(config));
    tokio::spawn(reloading(source, holds, notifier.clone()));
    tokio::spawn(follow(host.clone(), changes.clone(), filter));
    if let Some(every) = notifier.watchdog_every() {
        tokio::spawn(alive(notifier.clone(), every));
    }
    said(&changes.borrow(), &api);
    notifier.ready("running");
    let ended = tokio::select! {
        () = ends.any() => Ok(()),
        ended = api.ended() => ended.and_then(|()| Err(io::Error::other("the API has ended"))),
    };
    notifier.stopping();
    tracing::info!("the host service ends; machines and migrations go on");
    api.stop().await;
    if !host.flush_spans(FLUSH_WITHIN).await {
        tracing::warn!("spans of the last migrations have not left; they are kept on this host");
    }
    host.abandon().await;
    Ok(ended?)
}

/// What ends the service.
struct Ends(Signal, Signal);

impl Ends {
    fn listen() -> io::Result<Self> {
        Ok(Self(
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ))
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

fn files(tls: &Tls) -> TlsFiles {
    TlsFiles {
        ca: tls.ca.clone(),
        cert: tls.cert.clone(),
        key: tls.key.clone(),
    }
}

fn urls(config: &Config) -> std::collections::BTreeMap<String, String> {
    let peers = config.peers.iter();
    peers
        .map(|(name, peer)| (name.clone(), peer.url.clone()))
        .collect()
}

fn host_config(config: &Config, binary: PathBuf) -> HostConfig {
    HostConfig {
        name: config.host.name.clone(),
        state_dir: config.host.state_dir.clone(),
        binary,
        tls: config.migration_tls().map(files),
        listen: config.migration_address(),
        ports: (config.migration.first_port, config.migration.last_port),
        advertise: config.migration.advertise,
        files_in: config.migration.files_in.clone(),
        limits: config.limits.clone(),
        defaults: config.migration.defaults.clone(),
        peers: urls(config),
        come_within_s: u64::from(config.migration.come_within_s),
        remembered: config.migration.remembered as usize,
        telemetry: TelemetryConfig {
            endpoint: config.telemetry.otlp_endpoint.clone(),
            protocol: config.telemetry.otlp_protocol,
            service_name: config.telemetry.service_name.clone(),
        },
    }
}

fn listen(config: &Config) -> Listen {
    let tls = config.api.listen.zip(config.api.tls.as_ref());
    Listen {
        unix: Some(config.api.socket.clone()),
        tls: tls.map(|(address, tls)| TlsListen {
            address,
            ca: tls.ca.clone(),
            certificate: tls.cert.clone(),
            key: tls.key.clone(),
        }),
    }
}

/// Where it can be reached, for people who start it by hand.
fn said(config: &Config, api: &ApiHandle) {
    let socket = config.api.socket.display();
    let name = &config.host.name;
    match api.tls_address() {
        Some(address) => {
            tracing::info!("{name} listens on unix:{socket} and https://{address}");
        }
        None => tracing::info!("{name} listens on unix:{socket}, and for no other host"),
    }
}

async fn reloading(source: Source, holds: watch::Sender<Arc<Config>>, notifier: Notifier) {
    if let Err(error) = watch_limits(source, holds, notifier).await {
        tracing::error!(%error, "SIGHUP is not listened for");
    }
}

/// Takes over what a reload has changed.
async fn follow(host: Arc<Host>, mut changes: watch::Receiver<Arc<Config>>, filter: Filter) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        host.set_limits(config.limits.clone());
        host.set_peers(urls(&config));
        filter.set(&config.log.filter);
    }
}

/// Tells the service manager that the runtime gets on.
async fn alive(notifier: Notifier, every: Duration) {
    loop {
        notifier.alive();
        sleep(every).await;
    }
}
