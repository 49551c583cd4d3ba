//! Reaches a host service over its API.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use vmferry_engine::report::MigrationReport;
use vmferry_service::api::types::StreamEvent;
use vmferry_service::client::{ApiClient, ClientError};
use vmferry_service::model::{
    ConsoleOutput, Decision, Drain, DrainRequest, HostInfo, Migration, MigrationRequest,
    MigrationStarted, Preflight, Vm, VmSpec,
};
use vmferry_transports::TlsIdentity;

use super::api::{self, Happening, Happenings, Remote, RemoteError};
use super::{CommandError, Result};
use crate::cli::{Address, ConnectArgs};

/// The host service that the arguments name. Connects when it is asked something.
///
/// # Errors
/// https without a certificate, or with one that cannot be used.
pub(super) fn open(connect: &ConnectArgs) -> Result<Arc<dyn Remote>> {
    let identity = match &connect.host {
        Address::Unix(_) => None,
        Address::Https(url) => Some(identity(connect, url)?),
    };
    let client = ApiClient::new(&connect.host.to_string(), identity.as_ref())
        .map_err(|e| CommandError::Asked(e.to_string()))?;
    let address = connect.host.clone();
    Ok(Arc::new(Service { client, address }))
}

fn identity(connect: &ConnectArgs, url: &str) -> Result<TlsIdentity> {
    let (Some(ca), Some(cert), Some(key)) = (&connect.ca, &connect.cert, &connect.key) else {
        return Err(CommandError::Asked(format!(
            "{url} is asked with a certificate only: give --cert, --key and --ca (or VMFERRY_CERT, \
             VMFERRY_KEY and VMFERRY_CA)"
        )));
    };
    TlsIdentity::from_files(ca, cert, key).map_err(|e| CommandError::Asked(e.to_string()))
}

/// A service, as [`ApiClient`] reaches it.
struct Service {
    client: ApiClient,
    address: Address,
}

impl Service {
    /// What a client's error means to a user.
    fn wrong(&self, error: ClientError) -> RemoteError {
        wrong(&self.address, error)
    }
}

fn wrong(address: &Address, error: ClientError) -> RemoteError {
    match error {
        ClientError::Problem(problem) => RemoteError::Problem {
            status: problem.status,
            title: problem.title,
            detail: problem.detail,
        },
        ClientError::Strange { why, .. } => RemoteError::Garbled {
            address: address.to_string(),
            why,
        },
        ClientError::Connect { why, .. } => {
            // Whether the service runs shows in how its socket behaves.
            let socket = match address {
                Address::Unix(path) => UnixStream::connect(path).err(),
                Address::Https(_) => None,
            };
            let cause = socket.unwrap_or_else(|| std::io::Error::other(why));
            RemoteError::unreachable(address, address.is_here(), &cause)
        }
        silent @ (ClientError::Timeout { .. }
        | ClientError::Address(_)
        | ClientError::NoCertificate(_)) => RemoteError::unreachable(
            address,
            address.is_here(),
            &std::io::Error::other(silent.to_string()),
        ),
    }
}

#[async_trait]
impl Remote for Service {
    async fn host(&self) -> api::Result<HostInfo> {
        self.client.host().await.map_err(|e| self.wrong(e))
    }

    async fn vms(&self) -> api::Result<Vec<Vm>> {
        self.client.vms().await.map_err(|e| self.wrong(e))
    }

    async fn vm(&self, name: &str) -> api::Result<Vm> {
        self.client.vm(name).await.map_err(|e| self.wrong(e))
    }

    async fn create(&self, spec: &VmSpec) -> api::Result<Vm> {
        self.client.create(spec).await.map_err(|e| self.wrong(e))
    }

    async fn pause(&self, name: &str) -> api::Result<Vm> {
        self.client.pause(name).await.map_err(|e| self.wrong(e))
    }

    async fn resume(&self, name: &str) -> api::Result<Vm> {
        self.client.resume(name).await.map_err(|e| self.wrong(e))
    }

    async fn stop(&self, name: &str) -> api::Result<Vm> {
        self.client.stop(name).await.map_err(|e| self.wrong(e))
    }

    async fn start(&self, name: &str) -> api::Result<Vm> {
        self.client.start(name).await.map_err(|e| self.wrong(e))
    }

    async fn delete(&self, name: &str) -> api::Result<()> {
        self.client.delete_vm(name).await.map_err(|e| self.wrong(e))
    }

    async fn verify(&self, name: &str) -> api::Result<String> {
        self.client.verify(name).await.map_err(|e| self.wrong(e))
    }

    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> api::Result<u64> {
        let settled = self.client.settle_storage(name, nobody_else_writes).await;
        settled.map_err(|e| self.wrong(e))
    }

    async fn decide(&self, name: &str, decision: Decision) -> api::Result<()> {
        let decided = self.client.decide(name, decision).await;
        decided.map_err(|e| self.wrong(e))
    }

    async fn console(&self, name: &str, most_bytes: u64) -> api::Result<ConsoleOutput> {
        let console = self.client.console(name, most_bytes).await;
        console.map_err(|e| self.wrong(e))
    }

    async fn preflight(&self, name: &str, request: &MigrationRequest) -> api::Result<Preflight> {
        let preflight = self.client.preflight(name, request).await;
        preflight.map_err(|e| self.wrong(e))
    }

    async fn migrate(
        &self,
        name: &str,
        request: &MigrationRequest,
    ) -> api::Result<MigrationStarted> {
        let started = self.client.migrate(name, request).await;
        started.map_err(|e| self.wrong(e))
    }

    async fn migrations(&self) -> api::Result<Vec<Migration>> {
        let migrations = self.client.migrations(None, None).await;
        migrations.map_err(|e| self.wrong(e))
    }

    async fn migration(&self, id: &str) -> api::Result<Migration> {
        self.client.migration(id).await.map_err(|e| self.wrong(e))
    }

    async fn report(&self, id: &str) -> api::Result<MigrationReport> {
        self.client.report(id).await.map_err(|e| self.wrong(e))
    }

    async fn trace(&self, id: &str) -> api::Result<serde_json::Value> {
        self.client.trace(id).await.map_err(|e| self.wrong(e))
    }

    async fn cancel(&self, id: &str) -> api::Result<Migration> {
        self.client.cancel(id).await.map_err(|e| self.wrong(e))
    }

    async fn drain(&self, request: &DrainRequest) -> api::Result<Drain> {
        self.client.drain(request).await.map_err(|e| self.wrong(e))
    }

    async fn drain_state(&self) -> api::Result<Drain> {
        self.client.drain_state().await.map_err(|e| self.wrong(e))
    }

    async fn cancel_drain(&self) -> api::Result<Drain> {
        self.client.cancel_drain().await.map_err(|e| self.wrong(e))
    }

    async fn events(&self) -> api::Result<Happenings> {
        let events = self.client.events().await.map_err(|e| self.wrong(e))?;
        let address = self.address.clone();
        let items = stream::unfold((events, address), |(mut events, address)| async move {
            let item = match events.next().await? {
                Ok(StreamEvent::Change(event)) => Ok(Happening::Event(Box::new(event))),
                // How things are is read apart.
                Ok(StreamEvent::Frame(_)) => Ok(Happening::Missed),
                Err(error) => Err(wrong(&address, error)),
            };
            Some((item, (events, address)))
        });
        Ok(items.boxed())
    }
}
