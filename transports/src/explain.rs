//! Errors of the network, of TLS and of QUIC in words that say what to do.

use std::io;

use quinn::{ConnectionError, TransportErrorCode};
use rustls::{AlertDescription, CertificateError};

use crate::TransportError;

/// Why TLS failed with `other` ("the destination", "the peer").
pub(crate) fn tls(error: &rustls::Error, other: &str) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(CertificateError::NotValidForName) => {
            format!("the certificate of {other} is for another name; give the name it was made for")
        }
        E::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) => format!(
            "the certificate of {other} is not for {:?} but for {}; give the name it was made for",
            expected.to_str(),
            presented.join(", ")
        ),
        E::InvalidCertificate(_) => format!(
            "the certificate of {other} is not trusted ({}); both hosts need certificates of the same authority",
            certificate(error)
        ),
        E::NoCertificatesPresented => format!("{other} has shown no certificate"),
        E::AlertReceived(alert) => refusal(*alert, other),
        E::NoApplicationProtocol => no_common_protocol(other),
        E::PeerIncompatible(why) => format!("{other} cannot speak TLS 1.3 as needed ({why:?})"),
        E::InvalidMessage(_) => {
            format!("{other} does not speak TLS; is it a vmferry port of this transport?")
        }
        e => format!("TLS failed with {other}: {e}"),
    }
}

/// What is wrong with a certificate.
pub(crate) fn certificate(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "made by an unknown authority".to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "expired; or is the clock wrong?".to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "not valid yet; or is the clock wrong?".to_owned(),
        rustls::Error::InvalidCertificate(why) => why.to_string(),
        e => e.to_string(),
    }
}

/// Both ends must name the same application protocol.
pub(crate) fn no_common_protocol(other: &str) -> String {
    format!("{other} does not speak vmferry/1; is it vmferry, and of this version?")
}

/// What a TLS alert that `other` has sent means.
fn refusal(alert: AlertDescription, other: &str) -> String {
    use AlertDescription as A;
    match alert {
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::DecryptError
        | A::CertificateRequired => format!(
            "{other} refused this host's certificate ({alert:?}); both hosts need certificates of the same authority"
        ),
        A::NoApplicationProtocol => no_common_protocol(other),
        A::ProtocolVersion => format!("{other} does not speak TLS 1.3"),
        alert => format!("{other} refused the connection: TLS alert {alert:?}"),
    }
}

/// Why a connection over TCP failed, at any time.
pub(crate) fn io(error: &io::Error, other: &str) -> String {
    if let Some(inner) = error.get_ref() {
        if let Some(error) = inner.downcast_ref::<rustls::Error>() {
            return tls(error, other);
        }
        if let Some(error) = inner.downcast_ref::<TransportError>() {
            return error.to_string();
        }
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("refused: {other} does not listen there; is it running, and is this its port?")
        }
        io::ErrorKind::UnexpectedEof => format!("{other} broke off the connection"),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            format!("{other} closed the connection")
        }
        io::ErrorKind::TimedOut => no_answer(other),
        _ => error.to_string(),
    }
}

/// Nobody answers.
pub(crate) fn no_answer(other: &str) -> String {
    format!("{other} does not answer; is the address right, and does a firewall let it pass?")
}

/// A QUIC connection that failed or ended.
pub(crate) fn quic(error: &ConnectionError, other: &str) -> String {
    match error {
        ConnectionError::TransportError(e) => match alert(e.code) {
            // The reason is rustls' own text: it says more than the alert, which is only its class.
            Some(A::NoApplicationProtocol) => no_common_protocol(other),
            Some(_) => local_tls(&e.reason, other),
            None => format!("QUIC failed with {other}: {e}"),
        },
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(alert) => refusal(alert, other),
            None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                format!("refused: {other} takes no new connections")
            }
            None => format!("{other} closed the connection: {close}"),
        },
        ConnectionError::ApplicationClosed(_) => format!("{other} closed the connection"),
        ConnectionError::Reset => format!("{other} has lost the connection; was it restarted?"),
        ConnectionError::TimedOut => no_answer(other),
        ConnectionError::VersionMismatch => format!("{other} speaks another version of QUIC"),
        ConnectionError::LocallyClosed => "the connection is closed".to_owned(),
        ConnectionError::CidsExhausted => error.to_string(),
    }
}

use AlertDescription as A;

/// QUIC reports TLS alerts as 0x100 + alert (RFC 9001, 4.8).
fn alert(code: TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code);
    let alert = code.checked_sub(0x100)?;
    u8::try_from(alert).ok().map(AlertDescription::from)
}

/// A refusal of this side: QUIC passes on the text alone.
fn local_tls(reason: &str, other: &str) -> String {
    if reason.contains("not valid for") {
        format!(
            "the certificate of {other} is for another name: {reason}; give the name it was made for"
        )
    } else if reason.contains("invalid peer certificate") {
        format!(
            "the certificate of {other} is not trusted ({reason}); both hosts need certificates of the same authority"
        )
    } else if reason.contains("no certificates") {
        format!("{other} has shown no certificate")
    } else {
        format!("TLS failed with {other}: {reason}")
    }
}

/// As an error of a stream, kind kept.
pub(crate) fn stream(error: io::Error, other: &str) -> io::Error {
    let words = io(&error, other);
    io::Error::new(error.kind(), TransportError::Lost(words))
}

/// A lost QUIC connection as an error of a stream.
pub(crate) fn quic_stream(error: &ConnectionError, other: &str) -> io::Error {
    let kind = match error {
        ConnectionError::TimedOut => io::ErrorKind::TimedOut,
        ConnectionError::LocallyClosed => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, TransportError::Lost(quic(error, other)))
}
