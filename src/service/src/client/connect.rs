//! Where an API is, and connections to it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use vmferry_transports::TlsIdentity;

use super::error::{ClientError, chain};
use super::request::Sent;

/// Where an API listens on TCP as a rule.
const PORT: u16 = 7443;
/// How long a connection may take, with its handshakes.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Where an API is.
#[derive(Clone)]
pub(super) enum Target {
    Unix(PathBuf),
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
    },
}

impl Target {
    pub(super) fn parse(
        address: &str,
        identity: Option<&TlsIdentity>,
    ) -> Result<Self, ClientError> {
        let wrong = || ClientError::Address(address.to_owned());
        if let Some(path) = address.strip_prefix("unix:").filter(|p| !p.is_empty()) {
            // unix:///PATH is a URL of the same.
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Self::Unix(path.into()));
        }
        let rest = address.strip_prefix("https://").ok_or_else(wrong)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        // A colon inside of brackets is an address's.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (authority, PORT),
        };
        let host = match host.strip_prefix('[') {
            Some(inside) => inside.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let identity = identity.ok_or_else(|| ClientError::NoCertificate(address.to_owned()))?;
        Ok(Self::Tls {
            host: host.to_owned(),
            port,
            name,
            config: Arc::new(identity.client_config(&[b"http/1.1"])),
        })
    }

    /// What goes into the Host header.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// A connection that requests can be sent on.
    pub(super) async fn connect(&self) -> Result<SendRequest<Sent>, ClientError> {
        match tokio::time::timeout(CONNECT_TIME, self.connecting()).await {
            Ok(connected) => connected,
            Err(_) => Err(ClientError::Timeout {
                to: self.to_string(),
                seconds: CONNECT_TIME.as_secs(),
            }),
        }
    }

    async fn connecting(&self) -> Result<SendRequest<Sent>, ClientError> {
        match self {
            Self::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                let socket = socket.map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                        self.failed(format!("{e}: does the service run (`vmferry serve`)?"))
                    }
                    std::io::ErrorKind::PermissionDenied => self.failed(format!(
                        "{e}: the socket is for the service's own user and root"
                    )),
                    _ => self.failed(e),
                })?;
                self.handshake(socket).await
            }
            Self::Tls {
                host,
                port,
                name,
                config,
            } => {
                let socket = TcpStream::connect((host.as_str(), *port)).await;
                let socket = socket.map_err(|e| self.failed(e))?;
                let _ = socket.set_nodelay(true);
                let tls = TlsConnector::from(config.clone());
                let session = tls.connect(name.clone(), socket).await;
                self.handshake(session.map_err(|e| self.failed(chain(&e)))?)
                    .await
            }
        }
    }

    async fn handshake(
        &self,
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<SendRequest<Sent>, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|e| self.failed(chain(&e)))?;
        // Ends with the last of sender and body; what goes wrong is told to the sender.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    pub(super) fn failed(&self, why: impl ToString) -> ClientError {
        ClientError::Connect {
            to: self.to_string(),
            why: why.to_string(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { .. } => write!(f, "https://{}", self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let keys = vmferry_transports::keys::Authority::new()
            .unwrap()
            .issue("host-a")
            .unwrap();
        let identity = keys.identity().unwrap();
        for (given, shown) in [
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:///run/x.sock", "unix:/run/x.sock"),
            ("https://host-a:7443/", "https://host-a:7443"),
            ("https://[::1]:7443", "https://[::1]:7443"),
            ("https://host-a", "https://host-a:7443"),
        ] {
            let target = Target::parse(given, Some(&identity)).ok().unwrap();
            assert_eq!(target.to_string(), shown);
        }
        for wrong in [
            "",
            "unix:",
            "/run/x",
            "http://a:1",
            "https://a:b",
            "https://::1:7",
            "https://a:70000",
            "https://a b:1",
            "https://a:1/v1",
        ] {
            let refused = Target::parse(wrong, Some(&identity)).err();
            assert!(matches!(refused, Some(ClientError::Address(_))), "{wrong}");
        }
        let refused = Target::parse("https://a:1", None).err();
        assert!(matches!(refused, Some(ClientError::NoCertificate(_))));
    }
}
