//! Who does not get in, how they are told, and that others get in meanwhile.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::{HOST, Over, accept, bounded, connect, here, hosts};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use vmferry_transports::keys::{Authority, HostKeys};
use vmferry_transports::{
    Connector, LinkHint, Listener, TlsIdentity, TransportError, TransportKind, connector, listen,
};

const BOTH: [TransportKind; 2] = TransportKind::ALL;

async fn listener(kind: TransportKind, tls: &TlsIdentity) -> (Box<dyn Listener>, SocketAddr) {
    let listener = listen(kind, here(), tls, LinkHint::default())
        .await
        .unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

fn to(at: SocketAddr, kind: TransportKind, name: &str, tls: &TlsIdentity) -> Arc<dyn Connector> {
    connector(kind, at, name, tls, LinkHint::default(), None).unwrap()
}

/// The error of a connector while the listener works.
async fn refused(connector: &dyn Connector, listener: &mut dyn Listener) -> String {
    bounded(async {
        tokio::select! {
            error = connector.connect(1) => error.unwrap_err().to_string(),
            stream = listener.accept() => panic!("it got in: {stream:?}"),
        }
    })
    .await
}

/// A good peer gets in.
async fn gets_in(kind: TransportKind, at: SocketAddr, tls: &TlsIdentity, it: &mut dyn Listener) {
    bounded(connect(&*to(at, kind, HOST, tls), it, 2)).await;
}

#[tokio::test]
async fn a_listener_of_another_authority_is_not_trusted() {
    let (a, b) = hosts();
    let (stranger, _) = hosts();
    for kind in BOTH {
        let (mut listener, at) = listener(kind, &b).await;
        let error = refused(&*to(at, kind, HOST, &stranger), &mut *listener).await;
        assert!(
            error.contains("the certificate of the destination is not trusted"),
            "{error}"
        );
        gets_in(kind, at, &a, &mut *listener).await;
    }
}

#[tokio::test]
async fn a_host_of_another_authority_is_told_that_it_was_refused() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    let b = ours.issue(HOST).unwrap().identity().unwrap();
    let a = ours.issue("host-a").unwrap().identity().unwrap();
    let host = theirs.issue("host-c").unwrap();
    // It trusts the listener, but the listener does not trust it.
    let trusting = format!("{}{}", ours.pem(), theirs.pem());
    let c = TlsIdentity::from_pem(&trusting, host.certificate_pem(), host.key_pem()).unwrap();
    for kind in BOTH {
        let (mut listener, at) = listener(kind, &b).await;
        let error = refused(&*to(at, kind, HOST, &c), &mut *listener).await;
        assert!(
            error.contains("the destination refused this host's certificate"),
            "{error}"
        );
        gets_in(kind, at, &a, &mut *listener).await;
    }
}

#[tokio::test]
async fn another_name_is_not_trusted() {
    let (a, b) = hosts();
    for kind in BOTH {
        let (mut listener, at) = listener(kind, &b).await;
        let error = refused(&*to(at, kind, "host-x", &a), &mut *listener).await;
        assert!(error.contains("name"), "{error}");
        assert!(error.contains("host-x") && error.contains(HOST), "{error}");
    }
}

#[test]
fn a_name_that_is_none_is_refused_at_once() {
    let (a, _) = hosts();
    for kind in BOTH {
        let error = connector(kind, here(), "no name!", &a, LinkHint::default(), None).unwrap_err();
        assert!(matches!(error, TransportError::Tls { .. }), "{error}");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let (a, _) = hosts();
    for kind in BOTH {
        // A port that is nobody's: taken and given back.
        let at = match kind {
            TransportKind::Tcp => TcpListener::bind(here()).await.unwrap().local_addr(),
            TransportKind::Quic => UdpSocket::bind(here()).await.unwrap().local_addr(),
        };
        let connector = to(at.unwrap(), kind, HOST, &a);
        let error = bounded(connector.connect(1)).await.unwrap_err().to_string();
        assert!(error.contains("does not listen there"), "{error}");
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let (_, b) = hosts();
    for kind in BOTH {
        let (_listener, at) = listener(kind, &b).await;
        let error = listen(kind, at, &b, LinkHint::default()).await.unwrap_err();
        assert!(error.to_string().contains(&at.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_destination_that_does_not_speak_tls() {
    let (a, _) = hosts();
    let other = TcpListener::bind(here()).await.unwrap();
    let connector = to(other.local_addr().unwrap(), TransportKind::Tcp, HOST, &a);
    let (error, ()) = tokio::join!(bounded(connector.connect(0)), async {
        let (mut stream, _) = other.accept().await.unwrap();
        stream
            .write_all(b"220 mail.example ESMTP\r\n")
            .await
            .unwrap();
        // Until the other end has seen enough.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
}

/// A client of rustls alone: certificates of `keys`, if any, and protocols.
fn raw_client(ours: &Authority, keys: Option<&HostKeys>, protocols: &[&[u8]]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ours.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match keys {
        None => config.with_no_client_auth(),
        Some(keys) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(keys.certificate_pem().as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(keys.key_pem().as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    config
}

/// What such a client hears over TCP when it says that it is a control stream.
async fn hears(config: ClientConfig, at: SocketAddr) -> std::io::Result<u8> {
    let socket = TcpStream::connect(at).await?;
    let name = ServerName::try_from(HOST).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, socket).await?;
    stream.write_all(&[0]).await?;
    stream.read_u8().await
}

#[tokio::test]
async fn raw_tls_clients_get_in_only_with_certificate_and_protocol() {
    let ours = Authority::new().unwrap();
    let b = ours.issue(HOST).unwrap().identity().unwrap();
    let keys = ours.issue("host-a").unwrap();
    let a = keys.identity().unwrap();
    let (mut listener, at) = listener(TransportKind::Tcp, &b).await;
    let vmferry: &[&[u8]] = &[b"vmferry/1"];
    for (config, why) in [
        (raw_client(&ours, None, vmferry), "CertificateRequired"),
        (raw_client(&ours, Some(&keys), &[]), "close"),
        (
            raw_client(&ours, Some(&keys), &[b"http/1.1"]),
            "NoApplicationProtocol",
        ),
    ] {
        let error = tokio::select! {
            heard = bounded(hears(config, at)) => heard.unwrap_err().to_string(),
            stream = listener.accept() => panic!("it got in: {stream:?}"),
        };
        assert!(error.contains(why) || why == "close", "{error}");
    }
    // The same with both gets in: what was refused was refused for that alone.
    let both = raw_client(&ours, Some(&keys), vmferry);
    let (heard, _) =
        bounded(async { tokio::join!(hears(both, at), accept(&mut *listener, 0)) }).await;
    assert_eq!(heard.unwrap(), 1);
    gets_in(TransportKind::Tcp, at, &a, &mut *listener).await;
}

#[tokio::test]
async fn quic_clients_without_a_certificate_do_not_get_in() {
    let ours = Authority::new().unwrap();
    let b = ours.issue(HOST).unwrap().identity().unwrap();
    let (mut listener, at) = listener(TransportKind::Quic, &b).await;
    let crypto = raw_client(&ours, None, &[b"vmferry/1"]);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let client = quinn::Endpoint::client(here()).unwrap();
    let connecting = client
        .connect_with(quinn::ClientConfig::new(Arc::new(crypto)), at, HOST)
        .unwrap();
    let error = tokio::select! {
        error = bounded(async {
            match connecting.await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        }) => error.to_string(),
        stream = listener.accept() => panic!("it got in: {stream:?}"),
    };
    assert!(error.contains("certificate"), "{error}");
}

/// A client hello of TLS 1.2 (RFC 5246, 7.4.1.2), whole and in order.
fn tls12_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // Groups: x25519, secp256r1. Signatures: ecdsa_secp256r1_sha256. Points: uncompressed.
    let extensions = [
        0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0,
    ];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let len = hello.len() as u8;
    let mut record = vec![22, 3, 1, 0, len + 4, 1, 0, 0, len];
    record.extend(hello);
    record
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (_, b) = hosts();
    let (mut listener, at) = listener(TransportKind::Tcp, &b).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(&tls12_hello()).await.unwrap();
    let mut answer = Vec::new();
    tokio::select! {
        _ = bounded(client.read_to_end(&mut answer)) => {}
        stream = listener.accept() => panic!("it got in: {stream:?}"),
    }
    // A fatal alert: protocol_version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn garbage_and_silence_keep_nobody_out() {
    let (a, b) = hosts();
    let (mut listener, at) = listener(TransportKind::Tcp, &b).await;
    let mut others = Vec::new();
    for i in 0..60 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // Every third says nothing, every third stops in the middle of a record.
        match i % 3 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
            1 => stream.write_all(&tls12_hello()[..20]).await.unwrap(),
            _ => {}
        }
        others.push(stream);
    }
    gets_in(TransportKind::Tcp, at, &a, &mut *listener).await;

    let (mut listener, at) = self::listener(TransportKind::Quic, &b).await;
    let socket = UdpSocket::bind(here()).await.unwrap();
    for len in [1, 20, 1200] {
        for first in [0x00, 0x40, 0xc0, 0xff] {
            let mut garbage = common::content(len as u64, len);
            garbage[0] = first;
            socket.send_to(&garbage, at).await.unwrap();
        }
    }
    gets_in(TransportKind::Quic, at, &a, &mut *listener).await;
}

#[tokio::test]
async fn silent_peers_give_way_when_all_places_are_taken() {
    let (a, b) = hosts();
    let (mut listener, at) = listener(TransportKind::Tcp, &b).await;
    // More than there are places, the kernel's among them.
    let silent = async {
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        silent
    };
    let _silent = tokio::select! {
        silent = bounded(silent) => silent,
        stream = listener.accept() => panic!("it got in: {stream:?}"),
    };
    gets_in(TransportKind::Tcp, at, &a, &mut *listener).await;
}

#[test]
fn files_that_are_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new().unwrap();
    let files = ours.issue(HOST).unwrap().write_to(dir.path()).unwrap();
    let other = ours.issue("host-a").unwrap().write_to(dir.path()).unwrap();
    TlsIdentity::from_files(&files.ca, &files.certificate, &files.key).unwrap();

    let missing = dir.path().join("nothing.pem");
    let strangers = Authority::new().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    strangers.write_to(&elsewhere).unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for (ca, certificate, key, named, why) in [
        (
            &missing,
            &files.certificate,
            &files.key,
            &missing,
            "vmferry keys",
        ),
        (&files.ca, &empty, &files.key, &empty, "no certificate"),
        (
            &empty,
            &files.certificate,
            &files.key,
            &empty,
            "no certificate",
        ),
        (
            &files.ca,
            &files.certificate,
            &files.ca,
            &files.ca,
            "no private key",
        ),
        (
            &files.ca,
            &files.certificate,
            &other.key,
            &other.key,
            "not the key of",
        ),
        (
            &elsewhere.join("ca.pem"),
            &files.certificate,
            &files.key,
            &files.certificate,
            "does not vouch for it",
        ),
    ] {
        let error = TlsIdentity::from_files(ca, certificate, key)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&named.display().to_string()), "{error}");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn keys_are_secret_and_an_authority_can_be_used_again() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new().unwrap();
    ours.write_to(dir.path()).unwrap();
    let host = ours.issue_for(HOST, &["localhost", "127.0.0.1"]).unwrap();
    let files = host.write_to(dir.path()).unwrap();
    for secret in [&files.key, &dir.path().join("ca.key")] {
        let mode = std::fs::metadata(secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", secret.display());
    }
    assert!(!format!("{host:?}{ours:?}").contains("PRIVATE"));

    let again = Authority::load_from(dir.path()).unwrap();
    let late = again.issue("host-c").unwrap();
    TlsIdentity::from_pem(ours.pem(), late.certificate_pem(), late.key_pem()).unwrap();

    std::fs::write(dir.path().join("ca.pem"), Authority::new().unwrap().pem()).unwrap();
    let error = Authority::load_from(dir.path()).unwrap_err().to_string();
    assert!(error.contains("do not belong together"), "{error}");
}

#[test]
fn transports_have_names() {
    for kind in BOTH {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    let error = "carrier pigeon".parse::<TransportKind>().unwrap_err();
    assert!(error.to_string().contains("quic"), "{error}");
    assert_eq!(Over::Tcp.kind(), TransportKind::Tcp);
}
