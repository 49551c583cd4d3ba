//! A client of the API: for the command line, and for hosts among each other.
//!
//! Connects within 5 s, waits 60 s for an answer. It answers with what the API answers;
//! [`ClientError`] says what did not work.

use std::time::Instant;

use bytes::Bytes;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmferry_engine::report::MigrationReport;
use vmferry_transports::TlsIdentity;

use crate::api::MAX_SINK;
use crate::api::types::{Health, SettleRequest, Settled, Sunk, Verdict};
use crate::model::{
    ConsoleOutput, Decision, Drain, DrainRequest, HostInfo, KnownJobs, Migration, MigrationRequest,
    MigrationStarted, MigrationState, Offer, Preflight, Reception, ReceptionRequest, SettledJobs,
    Vm, VmSpec,
};

mod connect;
mod error;
mod events;
mod request;

pub use error::ClientError;
pub use events::EventStream;

use connect::Target;
use request::{Sent, part};

type Result<T> = std::result::Result<T, ClientError>;

/// A client of one host's API. Cheap to clone; holds no connection.
#[derive(Clone)]
pub struct ApiClient {
    target: Target,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiClient({})", self.target)
    }
}

impl ApiClient {
    /// For `unix:PATH`, or `https://HOST[:PORT]` (7443 where none is given), whose certificate has
    /// to be for HOST. The latter needs an identity.
    ///
    /// # Errors
    /// [`ClientError::Address`], [`ClientError::NoCertificate`].
    pub fn new(address: &str, identity: Option<&TlsIdentity>) -> Result<Self> {
        Ok(Self {
            target: Target::parse(address, identity)?,
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.target.ask(Method::GET, path, Sent::Nothing).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.target.ask(Method::POST, path, Sent::Nothing).await
    }

    async fn send<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.target.ask(Method::POST, path, self.json(body)?).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.tell(Method::DELETE, path, Sent::Nothing).await
    }

    /// What has no answer but that it is done.
    async fn tell(&self, method: Method, path: &str, body: Sent) -> Result<()> {
        let answer = self.target.send(method, path, body).await?;
        self.target.body(answer).await.map(drop)
    }

    fn json(&self, body: &impl Serialize) -> Result<Sent> {
        let json = serde_json::to_vec(body).map_err(|e| self.target.strange(e))?;
        Ok(Sent::Json(Bytes::from(json)))
    }

    async fn text(&self, path: &str) -> Result<String> {
        let answer = self.target.send(Method::GET, path, Sent::Nothing).await?;
        let bytes = self.target.body(answer).await?;
        String::from_utf8(bytes.to_vec()).map_err(|e| self.target.strange(e))
    }
}

/// The host. All are as the call of [`crate::control::Control`] of that name, and fail as
/// [`ClientError`] says.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
impl ApiClient {
    /// Whether the service answers.
    pub async fn health(&self) -> Result<Health> {
        self.get("/healthz").await
    }

    /// Name, capabilities, limits, load, peers.
    pub async fn host(&self) -> Result<HostInfo> {
        self.get("/v1/host").await
    }

    /// Moves all machines away.
    pub async fn drain(&self, request: &DrainRequest) -> Result<Drain> {
        self.send("/v1/host/drain", request).await
    }

    /// The drain under way, or the last one.
    pub async fn drain_state(&self) -> Result<Drain> {
        self.get("/v1/host/drain").await
    }

    /// Begins no more of it; what is under way is cancelled.
    pub async fn cancel_drain(&self) -> Result<Drain> {
        let path = "/v1/host/drain";
        self.target.ask(Method::DELETE, path, Sent::Nothing).await
    }

    /// Metrics, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String> {
        self.text("/metrics").await
    }

    /// The API's description.
    pub async fn openapi(&self) -> Result<String> {
        self.text("/openapi.json").await
    }

    /// The page.
    pub async fn page(&self) -> Result<String> {
        self.text("/").await
    }

    /// What happens, from a snapshot on.
    pub async fn events(&self) -> Result<EventStream> {
        let path = "/v1/events";
        let answer = self.target.send(Method::GET, path, Sent::Nothing).await?;
        Ok(EventStream::new(self.target.clone(), answer.into_body()))
    }
}

/// Machines.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
impl ApiClient {
    /// All machines, by name.
    pub async fn vms(&self) -> Result<Vec<Vm>> {
        self.get("/v1/vms").await
    }

    /// One of them.
    pub async fn vm(&self, name: &str) -> Result<Vm> {
        self.get(&vm(name, "")).await
    }

    /// Makes a machine and boots it.
    pub async fn create(&self, spec: &VmSpec) -> Result<Vm> {
        self.send("/v1/vms", spec).await
    }

    /// Forgets a machine that is stopped.
    pub async fn delete_vm(&self, name: &str) -> Result<()> {
        self.delete(&vm(name, "")).await
    }

    /// Stops its vCPUs.
    pub async fn pause(&self, name: &str) -> Result<Vm> {
        self.post(&vm(name, "/pause")).await
    }

    /// Lets them run on.
    pub async fn resume(&self, name: &str) -> Result<Vm> {
        self.post(&vm(name, "/resume")).await
    }

    /// Ends the machine; its description stays.
    pub async fn stop(&self, name: &str) -> Result<Vm> {
        self.post(&vm(name, "/stop")).await
    }

    /// Boots a machine that was stopped.
    pub async fn start(&self, name: &str) -> Result<Vm> {
        self.post(&vm(name, "/start")).await
    }

    /// Has the built-in workload verify its memory and its disk; its verdict.
    pub async fn verify(&self, name: &str) -> Result<String> {
        let verdict: Verdict = self.post(&vm(name, "/verify")).await?;
        Ok(verdict.verdict)
    }

    /// Vouches for writes of a former host; how many they are.
    pub async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64> {
        let request = SettleRequest { nobody_else_writes };
        let settled: Settled = self.send(&vm(name, "/settle-storage"), &request).await?;
        Ok(settled.writes)
    }

    /// Decides where a guest is of which neither host can know.
    pub async fn decide(&self, name: &str, decision: Decision) -> Result<()> {
        let body = self.json(&decision)?;
        self.tell(Method::POST, &vm(name, "/decide"), body).await
    }

    /// The last bytes of its consoles.
    pub async fn console(&self, name: &str, most_bytes: u64) -> Result<ConsoleOutput> {
        let path = vm(name, &format!("/console?most_bytes={most_bytes}"));
        self.get(&path).await
    }

    /// Whether it could be moved, and what that would take.
    pub async fn preflight(&self, name: &str, request: &MigrationRequest) -> Result<Preflight> {
        self.send(&vm(name, "/preflight"), request).await
    }

    /// Moves it to another host.
    pub async fn migrate(
        &self,
        name: &str,
        request: &MigrationRequest,
    ) -> Result<MigrationStarted> {
        self.send(&vm(name, "/migrate"), request).await
    }
}

/// Migrations.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
impl ApiClient {
    /// All that are remembered, newest first; those of one machine, in one state, where given.
    pub async fn migrations(
        &self,
        vm: Option<&str>,
        state: Option<MigrationState>,
    ) -> Result<Vec<Migration>> {
        let mut path = "/v1/migrations?".to_owned();
        if let Some(vm) = vm {
            path.push_str(&format!("vm={}&", part(vm)));
        }
        if let Some(state) = state {
            let name = serde_json::to_value(state).map_err(|e| self.target.strange(e))?;
            path.push_str(&format!("state={}", name.as_str().unwrap_or_default()));
        }
        self.get(path.trim_end_matches(['?', '&'])).await
    }

    /// One of them.
    pub async fn migration(&self, id: &str) -> Result<Migration> {
        self.get(&migration(id, "")).await
    }

    /// The report of one that has ended.
    pub async fn report(&self, id: &str) -> Result<MigrationReport> {
        self.get(&migration(id, "/report")).await
    }

    /// Its trace, as kept on that host.
    pub async fn trace(&self, id: &str) -> Result<serde_json::Value> {
        self.get(&migration(id, "/trace")).await
    }

    /// Cancels it, if that is still possible.
    pub async fn cancel(&self, id: &str) -> Result<Migration> {
        self.post(&migration(id, "/cancel")).await
    }
}

/// Between hosts.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
impl ApiClient {
    /// Would a machine of this description do there?
    pub async fn consider(&self, offer: &Offer) -> Result<Preflight> {
        self.send("/v1/peer/consider", offer).await
    }

    /// Asks it to be the destination of a migration.
    pub async fn receive(&self, request: &ReceptionRequest) -> Result<Reception> {
        self.send("/v1/peer/receive", request).await
    }

    /// A reception is not needed any more.
    pub async fn forget_reception(&self, id: &str) -> Result<()> {
        self.delete(&format!("/v1/peer/receive/{}", part(id))).await
    }

    /// Tells which storage jobs have ended; of which of them it knows.
    pub async fn told_settled(&self, settled: &SettledJobs) -> Result<KnownJobs> {
        self.send("/v1/peer/settled", settled).await
    }

    /// Sends so many bytes ([`MAX_SINK`] at most); how quickly they went, in Mbit/s. Measured from
    /// the request to its answer, on a connection that is there: few bytes measure the way there
    /// and back.
    pub async fn sink(&self, bytes: u64) -> Result<f64> {
        let bytes = bytes.min(MAX_SINK);
        let sender = self.target.connect().await?;
        let begun = Instant::now();
        let (path, body) = ("/v1/peer/sink", Sent::Zeros(bytes));
        let answer = self
            .target
            .send_on(sender, Method::POST, path, body)
            .await?;
        let sunk: Sunk = self.target.json(answer).await?;
        if sunk.bytes != bytes {
            return Err(self
                .target
                .strange(format!("of {bytes} bytes it says that {} came", sunk.bytes)));
        }
        Ok(bytes as f64 * 8e-6 / begun.elapsed().as_secs_f64().max(1e-9))
    }
}

fn vm(name: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", part(name))
}

fn migration(id: &str, rest: &str) -> String {
    format!("/v1/migrations/{}{rest}", part(id))
}
