//! Who asks, and what they may do.
//!
//! - Over the unix socket (mode 0600: the service's own user, and root): everything.
//! - Over TLS with a certificate whose common name begins with `admin-`: everything. Such a name
//!   among the alternative names means nothing: those are a server's.
//! - Over TLS with any other certificate of the authority, as hosts have them: what hosts ask of
//!   each other (`/v1/peer/…`), and to read `/v1/host`, `/v1/migrations…`, `/healthz` and
//!   `/openapi.json`. Machines and their consoles are not among that.

use std::any::Any;
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::Extensions;
use actix_web::http::Method;
use tokio::net::{TcpStream, UnixStream};
use vmferry_transports::keys::CertificateInfo;

/// Certificates with a name that begins so may do everything.
pub use vmferry_transports::keys::ADMIN as ADMIN_PREFIX;

/// A connection that takes nothing for so long, with bytes waiting for it, ends.
const STUCK: Duration = Duration::from_secs(60);

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A user of this machine who may open the socket.
    Local,
    /// Somebody with an administrator's certificate.
    Admin(String),
    /// Somebody with another certificate of the authority, and all names in it.
    Host(Vec<String>),
}

impl Caller {
    /// Notes who has connected; a connection of a kind that is not known here stays unknown, and
    /// may do nothing.
    pub(super) fn note(connection: &dyn Any, extensions: &mut Extensions) {
        if connection.is::<UnixStream>() {
            extensions.insert(Self::Local);
        } else if let Some(tls) = connection.downcast_ref::<TlsStream<TcpStream>>() {
            let (socket, session) = tls.get_ref();
            if let Err(e) = socket2::SockRef::from(socket).set_tcp_user_timeout(Some(STUCK)) {
                tracing::debug!("no limit on a stuck connection: {e}");
            }
            if let Some(own) = session.peer_certificates().and_then(<[_]>::first) {
                extensions.insert(Self::of_certificate(own));
            }
        }
    }

    /// From a certificate that TLS has verified.
    fn of_certificate(der: &[u8]) -> Self {
        // What cannot be read names nobody.
        let Ok(found) = CertificateInfo::from_der(der) else {
            return Self::Host(Vec::new());
        };
        if found.common_name.starts_with(ADMIN_PREFIX) {
            return Self::Admin(found.common_name);
        }
        let mut names = found.names;
        if !names.contains(&found.common_name) {
            names.insert(0, found.common_name);
        }
        Self::Host(names)
    }

    /// Whether this caller may do that. `path` as it came, not decoded: every path that is let
    /// through begins literally so, and the router keeps encoded slashes apart.
    pub(super) fn may(&self, method: &Method, path: &str) -> Result<(), String> {
        let Self::Host(names) = self else {
            return Ok(());
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let readable = ["/v1/host", "/v1/migrations", "/healthz", "/openapi.json"].contains(&path)
            || path.starts_with("/v1/migrations/");
        if path.starts_with("/v1/peer/") || (reads && readable) {
            return Ok(());
        }
        Err(format!(
            "the certificate is a host's ({}), and {method} {path} is for administrators: \
             use the unix socket, or a certificate with a name that begins with {ADMIN_PREFIX:?}",
            names.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_only_what_hosts_do() {
        let host = Caller::Host(vec!["host-b".to_owned()]);
        for (method, path) in [
            (Method::POST, "/v1/peer/receive"),
            (Method::DELETE, "/v1/peer/receive/x"),
            (Method::GET, "/v1/host"),
            (Method::GET, "/v1/migrations"),
            (Method::GET, "/v1/migrations/0/trace"),
        ] {
            assert_eq!(host.may(&method, path), Ok(()), "{method} {path}");
        }
        for (method, path) in [
            (Method::POST, "/v1/vms"),
            (Method::GET, "/v1/vms/web-1/console"),
            (Method::GET, "/v1/host/drain"),
            (Method::POST, "/v1/migrations/0/cancel"),
            (Method::GET, "/v1/events"),
            (Method::GET, "/v1/%70eer/../vms"),
            (Method::GET, "/"),
        ] {
            assert!(host.may(&method, path).is_err(), "{method} {path}");
            assert_eq!(Caller::Local.may(&method, path), Ok(()));
            assert_eq!(
                Caller::Admin("admin-x".to_owned()).may(&method, path),
                Ok(())
            );
        }
    }

    #[test]
    fn what_is_no_certificate_is_nobody_special() {
        assert_eq!(
            Caller::of_certificate(b"\x30\x82garbage"),
            Caller::Host(Vec::new())
        );
    }
}
