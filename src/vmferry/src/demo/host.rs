//! A host of the demo: one VM process, its directory, its certificate.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use vmferry_transports::keys::{Authority, KeyFiles};
use vmferry_vmm::SOCKET;
use vmferry_vmm::api::{Answer, Event, Request, TlsFiles};
use vmferry_vmm::client::{ClientError, VmmClient};

use super::DemoError;

/// A running VM process.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    keys: KeyFiles,
    client: VmmClient,
    child: Child,
    /// Its end tells the process that the demo has gone.
    _stdin: Option<ChildStdin>,
}

impl Host {
    /// Starts the VM process of host `name` in a directory of its own below `dir`.
    pub(super) async fn start(
        name: String,
        dir: PathBuf,
        authority: &Authority,
    ) -> Result<Self, DemoError> {
        std::fs::create_dir(&dir).map_err(DemoError::Directory)?;
        let keys = authority.issue(&name)?.write_to(&dir)?;
        let mut child = Command::new(std::env::current_exe().map_err(DemoError::Start)?)
            .args(["vmm", "--exit-with-parent", "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the demo, which then tells the VM processes what to do.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(DemoError::Start)?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .await
                .map_err(DemoError::Start)?;
        }
        if line.trim() != "ready" {
            return Err(DemoError::Start(io::Error::other(
                "it ended before it was ready (its own words are above)",
            )));
        }
        let (client, events) = VmmClient::connect(&dir.join(SOCKET)).await?;
        client.call(Request::Subscribe).await?;
        Ok(Self {
            name,
            events,
            keys,
            client,
            child,
            _stdin: stdin,
        })
    }

    pub(super) async fn call(&mut self, request: Request) -> Result<Answer, ClientError> {
        self.client.call(request).await
    }

    /// The next event; an error where the process has gone.
    pub(super) async fn event(&mut self) -> Result<Event, DemoError> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(DemoError::HostGone(self.name.clone())),
        }
    }

    pub(super) fn tls(&self) -> TlsFiles {
        TlsFiles {
            ca: self.keys.ca.clone(),
            cert: self.keys.certificate.clone(),
            key: self.keys.key.clone(),
        }
    }

    /// Ends the process.
    pub(super) async fn stop(mut self) {
        if self.client.call(Request::Shutdown).await.is_err() {
            let _ = self.child.start_kill();
        }
        let _ = self.child.wait().await;
    }
}
