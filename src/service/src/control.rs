//! What a host can be asked for: the API's handlers call it, the supervisor carries it out.

use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::broadcast;
use vmferry_engine::report::MigrationReport;

use crate::model::{
    ConsoleOutput, Decision, Drain, DrainRequest, HostInfo, KnownJobs, Migration, MigrationRequest,
    MigrationStarted, Offer, Preflight, Reception, ReceptionRequest, ServiceEvent, SettledJobs, Vm,
    VmSpec,
};

/// Why something was not done; in words, with what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It does not fit the state of things.
    #[error("{0}")]
    Conflict(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A limit of this host stands against it.
    #[error("{0}")]
    Limit(String),
    /// Another host cannot be reached, or refuses.
    #[error("{0}")]
    Peer(String),
    /// Something failed here.
    #[error("{0}")]
    Failed(String),
}

type Result<T> = std::result::Result<T, ControlError>;

/// A host. Shared by all requests; calls answer when what they ask for is done, or, where that
/// takes long, has begun.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Name, capabilities, limits, load, peers.
    async fn host(&self) -> HostInfo;

    /// All machines, by name.
    async fn vms(&self) -> Vec<Vm>;
    /// One of them.
    async fn vm(&self, name: &str) -> Result<Vm>;
    /// Makes a machine and boots it.
    async fn create(&self, spec: VmSpec) -> Result<Vm>;
    /// Stops its vCPUs.
    async fn pause(&self, name: &str) -> Result<Vm>;
    /// Lets them run on.
    async fn resume(&self, name: &str) -> Result<Vm>;
    /// Ends the machine; its description stays.
    async fn stop(&self, name: &str) -> Result<Vm>;
    /// Boots a machine that was stopped, or that died with its process.
    async fn start(&self, name: &str) -> Result<Vm>;
    /// Forgets a machine that is stopped.
    async fn delete(&self, name: &str) -> Result<()>;
    /// Has the built-in workload verify its memory and its disk; its verdict.
    async fn verify(&self, name: &str) -> Result<String>;
    /// Vouches for writes of a former host; how many they are.
    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64>;
    /// Where a guest is that is undecided: here it goes on, elsewhere it is forgotten here.
    async fn decide(&self, name: &str, decision: Decision) -> Result<()>;
    /// The last bytes of a console file.
    async fn console(&self, name: &str, most_bytes: u64) -> Result<ConsoleOutput>;

    /// Whether a machine could be moved, and what that would take. Changes nothing.
    async fn preflight(&self, name: &str, request: &MigrationRequest) -> Result<Preflight>;
    /// Moves a machine to another host.
    async fn migrate(&self, name: &str, request: MigrationRequest) -> Result<MigrationStarted>;
    /// All migrations that are remembered, newest first.
    async fn migrations(&self) -> Vec<Migration>;
    /// One of them.
    async fn migration(&self, id: &str) -> Result<Migration>;
    /// The report of one that has ended.
    async fn report(&self, id: &str) -> Result<MigrationReport>;
    /// Its trace, as kept on this host.
    async fn trace(&self, id: &str) -> Result<serde_json::Value>;
    /// Cancels it, if that is still possible.
    async fn cancel(&self, id: &str) -> Result<Migration>;

    /// Moves all machines away.
    async fn drain(&self, request: DrainRequest) -> Result<Drain>;
    /// The drain under way, or the last one.
    async fn drain_state(&self) -> Result<Drain>;
    /// Begins no more of it; what is under way is cancelled.
    async fn cancel_drain(&self) -> Result<Drain>;

    /// For another host: would a machine of this description do here?
    async fn consider(&self, offer: Offer) -> Result<Preflight>;
    /// For another host: be the destination of a migration.
    async fn receive(&self, request: ReceptionRequest) -> Result<Reception>;
    /// For another host: a reception is not needed any more.
    async fn forget_reception(&self, id: &str) -> Result<()>;

    /// For another host: storage jobs of a machine that came from there have ended. Answers of
    /// which that is on disk here; the others are to be told again.
    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs>;

    /// What happens from here on.
    fn events(&self) -> broadcast::Receiver<ServiceEvent>;
    /// Metrics, as Prometheus reads them.
    async fn metrics(&self) -> String;
}

/// A host, as handlers hold it.
pub type SharedControl = Arc<dyn Control>;
