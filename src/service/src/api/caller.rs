//! Who asks, and what they may do.
//!
//! - Over the unix socket (mode 0600: the service's own user, and root): everything.
//! - Over TLS with a certificate that bears a name beginning with `admin-` (common name, or a DNS
//!   name among the alternative names): everything.
//! - Over TLS with any other certificate of the authority, as hosts have them: what hosts ask of
//!   each other (`/v1/peer/…`), and to read `/v1/host`, `/v1/migrations…`, `/healthz` and
//!   `/openapi.json`. Machines and their consoles are not among that.

use std::any::Any;
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::Extensions;
use actix_web::http::Method;
use tokio::net::{TcpStream, UnixStream};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

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
    /// Somebody with another certificate of the authority.
    Host(String),
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
        let names = names(der);
        match names.iter().find(|name| name.starts_with(ADMIN_PREFIX)) {
            Some(admin) => Self::Admin(admin.clone()),
            None => Self::Host(names.into_iter().next().unwrap_or_default()),
        }
    }

    /// Whether this caller may do that. `path` as it came, not decoded: every path that is let
    /// through begins literally so, and the router keeps encoded slashes apart.
    pub(super) fn may(&self, method: &Method, path: &str) -> Result<(), String> {
        let Self::Host(name) = self else {
            return Ok(());
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let readable = ["/v1/host", "/v1/migrations", "/healthz", "/openapi.json"].contains(&path)
            || path.starts_with("/v1/migrations/");
        if path.starts_with("/v1/peer/") || (reads && readable) {
            return Ok(());
        }
        Err(format!(
            "the certificate of {name:?} is a host's, and {method} {path} is for administrators: \
             use the unix socket, or a certificate with a name that begins with {ADMIN_PREFIX:?}"
        ))
    }
}

/// Common names, then DNS names.
fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = parse_x509_certificate(der) else {
        return Vec::new();
    };
    let mut names: Vec<String> = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect();
    if let Ok(Some(others)) = certificate.subject_alternative_name() {
        for name in &others.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_only_what_hosts_do() {
        let host = Caller::Host("host-b".to_owned());
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
            Caller::Host(String::new())
        );
    }
}
