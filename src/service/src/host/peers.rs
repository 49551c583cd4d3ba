//! Other hosts, as this one sees them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::control::{Control, ControlError};
use crate::model::{
    HostInfo, KnownJobs, Offer, Preflight, Reception, ReceptionRequest, SettledJobs,
};

type Result<T> = std::result::Result<T, ControlError>;

/// Another host. Calls end after a bounded time; one that cannot be reached is
/// [`ControlError::Peer`], what it answers itself comes as it says it.
#[async_trait]
pub trait Peer: Send + Sync + fmt::Debug {
    /// Its name, capabilities, load.
    async fn host(&self) -> Result<HostInfo>;
    /// Would a machine of this description do there?
    async fn consider(&self, offer: Offer) -> Result<Preflight>;
    /// It is to be the destination of a migration.
    async fn receive(&self, request: ReceptionRequest) -> Result<Reception>;
    /// A reception is not needed any more; whether there is one or not.
    async fn forget_reception(&self, id: &str) -> Result<()>;
    /// Storage jobs of a machine that went there have ended; of which of them that is on disk there.
    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs>;
    /// What it has kept of a migration's trace, as OTLP JSON.
    async fn trace(&self, id: &str) -> Result<serde_json::Value>;
    /// Measures the throughput to it, in Mbit/s; none where that cannot be done.
    async fn bandwidth(&self) -> Option<f64> {
        None
    }
}

/// Reaches other hosts.
pub trait PeerConnector: Send + Sync + fmt::Debug {
    /// The host whose API has this URL. Connects when it is first asked something.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] for a URL that is none.
    fn peer(&self, url: &str) -> Result<Arc<dyn Peer>>;
}

/// A host in the same process.
#[derive(Clone)]
pub struct LocalPeer(pub Arc<dyn Control>);

impl fmt::Debug for LocalPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPeer").finish_non_exhaustive()
    }
}

#[async_trait]
impl Peer for LocalPeer {
    async fn host(&self) -> Result<HostInfo> {
        Ok(self.0.host().await)
    }

    async fn consider(&self, offer: Offer) -> Result<Preflight> {
        self.0.consider(offer).await
    }

    async fn receive(&self, request: ReceptionRequest) -> Result<Reception> {
        self.0.receive(request).await
    }

    async fn forget_reception(&self, id: &str) -> Result<()> {
        self.0.forget_reception(id).await
    }

    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs> {
        self.0.told_settled(settled).await
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        self.0.trace(id).await
    }
}
