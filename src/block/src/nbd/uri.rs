//! NBD URIs, as the NBD project's URI specification has them, with a few parameters.

use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Port of a server that names none.
pub const DEFAULT_PORT: u16 = 10_809;
/// Most connections of one disk.
pub const MAX_CONNECTIONS: u8 = 16;
/// Longest name of an export, in bytes, as the protocol has it.
const MAX_NAME: usize = 4096;
/// Longest path of a socket, in bytes: what the kernel takes.
const MAX_SOCKET: usize = 107;

const KNOWN: &str = "socket=PATH (with nbd+unix and nbds+unix), connections=1 to 16, \
                     tls-certificates=DIR and tls-hostname=NAME (with nbds and nbds+unix)";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port of a host: a name, or an address without brackets.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// With whom to speak TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParameters {
    /// Directory with `ca-cert.pem`, and with `client-cert.pem` and `client-key.pem` where the
    /// server wants to know its clients.
    pub certificates: PathBuf,
    /// The name that the server's certificate has to bear.
    pub hostname: String,
}

/// A parsed URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub address: Address,
    /// Name of the export; may be empty: the server's default.
    pub export: String,
    /// `nbds`: TLS, or nothing.
    pub tls: Option<TlsParameters>,
    /// Connections, 1 to 16, if it says.
    pub connections: Option<u8>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The query's parameters, decoded.
#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    connections: Option<u8>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
}

impl NbdUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// What is wrong with it, in words, with what would be right.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(format!(
                "'{uri}' is no NBD URI: it has no scheme; {SCHEMES}"
            ));
        };
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(format!("'{scheme}' is not a scheme of NBD; {SCHEMES}")),
        };
        if rest.contains('#') {
            return Err("an NBD URI has no fragment: write '#' as %23".to_owned());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        let export = text(path, "the export's name")?;
        if export.len() > MAX_NAME {
            return Err(format!("the export's name is longer than {MAX_NAME} bytes"));
        }
        let parameters = Parameters::parse(query)?;
        let address = if unix {
            unix_address(authority, parameters.socket)?
        } else if parameters.socket.is_some() {
            return Err("socket= belongs to nbd+unix and nbds+unix".to_owned());
        } else {
            tcp_address(authority)?
        };
        let tls = match (tls, parameters.certificates, parameters.hostname) {
            (true, Some(certificates), hostname) => Some(TlsParameters {
                certificates,
                hostname: hostname.unwrap_or_else(|| match &address {
                    Address::Tcp { host, .. } => host.clone(),
                    Address::Unix(_) => "localhost".to_owned(),
                }),
            }),
            (true, None, _) => {
                return Err(
                    "TLS needs tls-certificates=DIR, a directory with ca-cert.pem, and \
                            client-cert.pem and client-key.pem if the server asks for them"
                        .to_owned(),
                );
            }
            (false, None, None) => None,
            (false, ..) => {
                return Err(
                    "tls-certificates= and tls-hostname= belong to nbds and nbds+unix: \
                            without TLS they would protect nothing"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            address,
            export,
            tls,
            connections: parameters.connections,
        })
    }
}

const SCHEMES: &str = "write nbd://HOST[:PORT]/EXPORT, nbds://HOST[:PORT]/EXPORT, \
                       nbd+unix:///EXPORT?socket=PATH or nbds+unix:///EXPORT?socket=PATH";

impl Parameters {
    fn parse(query: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let twice = match name {
                "socket" => all.socket.replace(path(value, name)?).is_some(),
                "tls-certificates" => all.certificates.replace(path(value, name)?).is_some(),
                "tls-hostname" => all.hostname.replace(text(value, name)?).is_some(),
                "connections" => all.connections.replace(connections(value)?).is_some(),
                _ => return Err(format!("'{name}' is not known; known are: {KNOWN}")),
            };
            if twice {
                return Err(format!("{name}= is there twice"));
            }
        }
        Ok(all)
    }
}

fn connections(value: &str) -> Result<u8, String> {
    value
        .parse()
        .ok()
        .filter(|n| (1..=MAX_CONNECTIONS).contains(n))
        .ok_or_else(|| format!("connections={value}: a number from 1 to {MAX_CONNECTIONS}"))
}

fn unix_address(authority: &str, socket: Option<PathBuf>) -> Result<Address, String> {
    if !authority.is_empty() {
        return Err(format!(
            "a Unix socket has no host: write three slashes and the export's name, not \
             '//{authority}'"
        ));
    }
    let socket = socket.ok_or("a Unix socket's path is missing: add ?socket=PATH")?;
    if socket.as_os_str().len() > MAX_SOCKET {
        return Err(format!(
            "the socket's path is longer than {MAX_SOCKET} bytes"
        ));
    }
    Ok(Address::Unix(socket))
}

fn tcp_address(authority: &str) -> Result<Address, String> {
    if authority.contains('@') {
        return Err(
            "user names (TLS with pre-shared keys) are not supported: use \
                    tls-certificates=DIR"
                .to_owned(),
        );
    }
    let wrong = || format!("'{authority}' is not HOST or HOST:PORT");
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(wrong)?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(digits) => digits.parse().ok().filter(|p| *p > 0).ok_or_else(wrong)?,
    };
    let host = match text(host, "the host's name")? {
        host if host.is_empty() => "localhost".to_owned(),
        host => host,
    };
    Ok(Address::Tcp { host, port })
}

fn path(value: &str, name: &str) -> Result<PathBuf, String> {
    match decode(value, name)? {
        bytes if bytes.is_empty() => Err(format!("{name}= is empty")),
        bytes => Ok(std::ffi::OsString::from_vec(bytes).into()),
    }
}

fn text(value: &str, what: &str) -> Result<String, String> {
    String::from_utf8(decode(value, what)?).map_err(|_| format!("{what} is not UTF-8"))
}

/// Undoes percent-encoding.
fn decode(value: &str, what: &str) -> Result<Vec<u8>, String> {
    let mut bytes = value.bytes();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit(), digit());
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(format!("{what}: '%' is followed by two hexadecimal digits"));
                };
                (high * 16 + low) as u8
            }
            byte => byte,
        };
        if byte == 0 {
            return Err(format!("{what} holds a zero byte"));
        }
        out.push(byte);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        let host = host.to_owned();
        Address::Tcp { host, port }
    }

    #[test]
    fn uris_are_read() {
        let cases = [
            ("nbd://host", tcp("host", 10809), ""),
            ("nbd://host/", tcp("host", 10809), ""),
            ("nbd://host:99/a/b", tcp("host", 99), "a/b"),
            ("nbd://[::1]:99//abs", tcp("::1", 99), "/abs"),
            ("nbd://[fe80::1]/x%2Fy%25", tcp("fe80::1", 10809), "x/y%"),
            ("nbd:///x", tcp("localhost", 10809), "x"),
            (
                "nbd+unix:///x?socket=/a%20b",
                Address::Unix("/a b".into()),
                "x",
            ),
            ("nbd+unix://?socket=s", Address::Unix("s".into()), ""),
        ];
        for (uri, address, export) in cases {
            let parsed = NbdUri::parse(uri).unwrap_or_else(|e| panic!("{uri}: {e}"));
            assert_eq!((parsed.address, parsed.export.as_str()), (address, export));
            assert_eq!((parsed.tls, parsed.connections), (None, None));
        }
    }

    #[test]
    fn parameters_are_read() {
        let uri = "nbds://h/x?connections=16&tls-certificates=/d&tls-hostname=n";
        let parsed = NbdUri::parse(uri).unwrap();
        assert_eq!(parsed.connections, Some(16));
        let tls = parsed.tls.unwrap();
        assert_eq!(
            (tls.certificates, tls.hostname.as_str()),
            ("/d".into(), "n")
        );
        let names = ["nbds://h/?", "nbds+unix:///?socket=s&"].map(|uri| {
            let parsed = NbdUri::parse(&format!("{uri}tls-certificates=d")).unwrap();
            parsed.tls.unwrap().hostname
        });
        assert_eq!(names, ["h", "localhost"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("host/x", "no scheme"),
            ("http://host/x", "nbd+unix:///EXPORT"),
            ("nbd://h/x?depth=3", "connections=1 to 16"),
            ("nbd://h/x?connections=0", "1 to 16"),
            ("nbd://h/x?connections=17", "1 to 16"),
            ("nbd://h/x?connections=2&connections=2", "twice"),
            ("nbd://h/x?socket=/s", "nbd+unix"),
            ("nbd+unix:///x", "socket=PATH"),
            ("nbd+unix://h/x?socket=/s", "three slashes"),
            ("nbd+unix:///x?socket=", "empty"),
            ("nbds://h/x", "ca-cert.pem"),
            ("nbd://h/x?tls-hostname=n", "without TLS"),
            ("nbd://u@h/x", "tls-certificates"),
            ("nbd://h:0/x", "HOST:PORT"),
            ("nbd://h:65536/x", "HOST:PORT"),
            ("nbd://[::1/x", "HOST:PORT"),
            ("nbd://[::1]9/x", "HOST:PORT"),
            ("nbd://h/x%2", "hexadecimal"),
            ("nbd://h/x%ff", "UTF-8"),
            ("nbd://h/x%00", "zero byte"),
            ("nbd://h/x#y", "%23"),
        ];
        for (uri, words) in cases {
            let why = NbdUri::parse(uri).unwrap_err();
            assert!(why.contains(words), "{uri}: {why}");
        }
    }
}
