//! Other hosts, over their APIs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use vmferry_protocol::errors::chain;
use vmferry_transports::TlsIdentity;
use vmferry_vmm::api::TlsFiles;

use crate::client::{ApiClient, ClientError};
use crate::control::ControlError;
use crate::host::{Peer, PeerConnector};
use crate::model::{
    HostInfo, KnownJobs, Offer, Preflight, Reception, ReceptionRequest, SettledJobs,
};

type Result<T> = std::result::Result<T, ControlError>;

/// First it is measured with so many bytes, which say of a slow link all there is to say.
const FEW_BYTES: u64 = 1 << 20;
const MANY_BYTES: u64 = 32 << 20;
/// Links that carry the first bytes in less are measured again with many.
const SOON_MBIT: f64 = 200.0;
/// How long that may take.
const MEASURE_WITHIN: Duration = Duration::from_secs(10);

/// Reaches hosts by this host's certificate, which is read anew each time: it may be renewed.
#[derive(Debug)]
pub(super) struct Network {
    tls: Option<TlsFiles>,
}

impl Network {
    pub(super) const fn new(tls: Option<TlsFiles>) -> Self {
        Self { tls }
    }
}

impl PeerConnector for Network {
    fn peer(&self, url: &str) -> Result<Arc<dyn Peer>> {
        let identity = match &self.tls {
            Some(files) => {
                let read = TlsIdentity::from_files(&files.ca, &files.cert, &files.key);
                Some(read.map_err(|e| ControlError::Failed(chain(&e)))?)
            }
            None => None,
        };
        let client = ApiClient::new(url, identity.as_ref());
        Ok(Arc::new(ApiPeer(client.map_err(wrong)?)))
    }
}

#[derive(Debug)]
struct ApiPeer(ApiClient);

/// What a peer's error is to this host.
fn wrong(error: ClientError) -> ControlError {
    let words = error.to_string();
    match error {
        ClientError::Problem(problem) => match problem.status {
            404 => ControlError::NotFound(words),
            409 => ControlError::Conflict(words),
            400 | 422 => ControlError::Invalid(words),
            429 => ControlError::Limit(words),
            _ => ControlError::Peer(words),
        },
        ClientError::Address(_) | ClientError::NoCertificate(_) => ControlError::Invalid(words),
        _ => ControlError::Peer(words),
    }
}

#[async_trait]
impl Peer for ApiPeer {
    async fn host(&self) -> Result<HostInfo> {
        self.0.host().await.map_err(wrong)
    }

    async fn consider(&self, offer: Offer) -> Result<Preflight> {
        self.0.consider(&offer).await.map_err(wrong)
    }

    async fn receive(&self, request: ReceptionRequest) -> Result<Reception> {
        self.0.receive(&request).await.map_err(wrong)
    }

    async fn forget_reception(&self, id: &str) -> Result<()> {
        self.0.forget_reception(id).await.map_err(wrong)
    }

    async fn told_settled(&self, settled: SettledJobs) -> Result<KnownJobs> {
        self.0.told_settled(&settled).await.map_err(wrong)
    }

    async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        self.0.trace(id).await.map_err(wrong)
    }

    async fn bandwidth(&self) -> Option<f64> {
        let measure = async {
            let few = self.0.sink(FEW_BYTES).await.ok()?;
            if few < SOON_MBIT {
                return Some(few);
            }
            self.0.sink(MANY_BYTES).await.ok()
        };
        timeout(MEASURE_WITHIN, measure).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ProblemDetails;

    #[test]
    fn what_a_peer_answers_keeps_its_meaning() {
        let answered = |status| {
            wrong(ClientError::Problem(Box::new(ProblemDetails {
                kind: String::new(),
                title: String::new(),
                status,
                detail: "why".to_owned(),
                instance: String::new(),
            })))
        };
        let why = "why".to_owned();
        assert_eq!(answered(404), ControlError::NotFound(why.clone()));
        assert_eq!(answered(409), ControlError::Conflict(why.clone()));
        assert_eq!(answered(422), ControlError::Invalid(why.clone()));
        assert_eq!(answered(429), ControlError::Limit(why.clone()));
        assert_eq!(answered(500), ControlError::Peer(why));
        let nowhere = Network::new(None).peer("http://host-b").unwrap_err();
        assert!(matches!(nowhere, ControlError::Invalid(_)), "{nowhere}");
    }

    #[tokio::test]
    async fn one_that_is_not_there_is_told() {
        let peer = Network::new(None).peer("unix:/no/such/socket").unwrap();
        let gone = peer.host().await.unwrap_err();
        assert!(matches!(gone, ControlError::Peer(_)), "{gone}");
        assert_eq!(peer.bandwidth().await, None);
    }
}
