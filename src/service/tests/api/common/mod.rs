//! An API with a fake host behind it, and ways to ask it.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod fake;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fake::FakeHost;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmferry_service::api::{self, ApiHandle, Listen, TlsListen};
use vmferry_service::client::{ApiClient, ClientError};
use vmferry_transports::keys::{ADMIN, Authority, DAYS, HostKeys};

/// An API, on a unix socket and with TLS.
pub(crate) struct Lab {
    pub(crate) fake: Arc<FakeHost>,
    pub(crate) handle: ApiHandle,
    pub(crate) authority: Authority,
    pub(crate) socket: PathBuf,
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let keys = authority.issue_for("host-a", &["127.0.0.1"]).unwrap();
        let files = keys.write_to(dir.path()).unwrap();
        let fake = FakeHost::new();
        let socket = dir.path().join("api.sock");
        let listen = Listen {
            unix: Some(socket.clone()),
            tls: Some(TlsListen {
                address: "127.0.0.1:0".parse().unwrap(),
                ca: files.ca,
                certificate: files.certificate,
                key: files.key,
            }),
        };
        let handle = api::serve(fake.clone(), listen).unwrap();
        Self {
            fake,
            handle,
            authority,
            socket,
            dir,
        }
    }

    /// A client on the unix socket.
    pub(crate) fn local(&self) -> ApiClient {
        ApiClient::new(&format!("unix:{}", self.socket.display()), None).unwrap()
    }

    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.handle.tls_address().unwrap()
    }

    /// A client over TLS, with a certificate for these names.
    pub(crate) fn remote(&self, name: &str, others: &[&str]) -> ApiClient {
        let keys = match name.strip_prefix(ADMIN) {
            Some(user) => self.authority.user(user, DAYS),
            None => self.authority.issue_for(name, others),
        };
        self.with_keys(&keys.unwrap())
    }

    pub(crate) fn with_keys(&self, keys: &HostKeys) -> ApiClient {
        let url = format!("https://{}", self.tls_address());
        ApiClient::new(&url, Some(&keys.identity().unwrap())).unwrap()
    }

    /// Sends bytes to the unix socket; all that is answered, until the end.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut socket = UnixStream::connect(&self.socket).await.unwrap();
        // An answer may come before all is sent.
        let _ = socket.write_all(request).await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request to the unix socket.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Answer::parse(&self.raw(request.as_bytes()).await)
    }

    /// The same, with JSON.
    pub(crate) async fn json(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers = "Content-Type: application/json\r\n";
        self.ask(method, path, headers, body).await
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    /// The detail of a problem document, after checking it.
    pub(crate) fn problem(&self, status: u16, path: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let header = "content-type: application/problem+json";
        assert!(self.head.contains(header), "{self:?}");
        let document: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(document["status"], status);
        assert_eq!(document["instance"], path);
        let kind = document["type"].as_str().unwrap();
        assert!(kind.starts_with("urn:vmferry:problem:"), "{kind}");
        assert!(!document["title"].as_str().unwrap().is_empty());
        document["detail"].as_str().unwrap().to_owned()
    }
}

/// The status and the detail that a client was refused with.
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (u16, String) {
    let error = outcome.unwrap_err();
    let status = error.status().unwrap_or_else(|| panic!("{error}"));
    (status, error.detail())
}

/// A machine's description.
pub(crate) fn spec(name: &str) -> vmferry_service::model::VmSpec {
    serde_json::from_value(serde_json::json!({"name": name, "ram_mib": 64})).unwrap()
}
