//! The API over TLS: who is let in, and who may do what.

use std::sync::Arc;

use crate::common::{Lab, refused, spec};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmferry_service::client::ClientError;
use vmferry_service::model::{Offer, ReceptionRequest, SettledJobs};
use vmferry_transports::keys::{Authority, DAYS};

fn offer() -> Offer {
    Offer {
        spec: spec("web-1"),
        cpu_features: Vec::new(),
        software: "vmferry 0".to_owned(),
        protocol: (1, 1),
    }
}

#[tokio::test]
async fn administrators_may_do_everything() {
    let lab = Lab::new();
    let api = lab.remote("admin-jo", &[]);
    api.create(&spec("web-1")).await.unwrap();
    api.pause("web-1").await.unwrap();
    assert_eq!(api.console("web-1", 3).await.unwrap().serial, "log");
    api.consider(&offer()).await.unwrap();
    api.events().await.unwrap().next().await.unwrap().unwrap();
    assert!(api.page().await.is_ok());
}

#[tokio::test]
async fn hosts_may_only_what_hosts_do() {
    let lab = Lab::new();
    lab.local().create(&spec("web-1")).await.unwrap();
    let api = lab.remote("host-b", &["not-admin-x"]);
    assert_eq!(api.host().await.unwrap().name, "host-a");
    assert_eq!(api.migrations(None, None).await.unwrap(), []);
    assert_eq!(api.health().await.unwrap().status, "ok");
    assert!(api.openapi().await.is_ok());
    api.consider(&offer()).await.unwrap();
    assert!(api.sink(1 << 20).await.unwrap() > 0.0);
    assert_eq!(refused(api.forget_reception("x").await).0, 404);

    for outcome in [
        refused(api.create(&spec("web-2")).await),
        refused(api.vms().await),
        refused(api.pause("web-1").await),
        refused(api.console("web-1", 1).await),
        refused(api.delete_vm("web-1").await),
        refused(api.cancel(&"0".repeat(32)).await),
        refused(api.drain_state().await),
        refused(api.events().await),
        refused(api.metrics().await),
        refused(api.page().await),
    ] {
        assert_eq!(outcome.0, 403);
        assert!(
            outcome.1.contains("the certificate is a host's (host-b"),
            "{}",
            outcome.1
        );
        assert!(outcome.1.contains("\"admin-\""), "{}", outcome.1);
    }
    assert_eq!(lab.local().vms().await.unwrap().len(), 1);
}

/// Asks over TLS with whatever configuration; what is answered, or why nothing is.
async fn ask(lab: &Lab, config: rustls::ClientConfig) -> Result<String, std::io::Error> {
    let socket = TcpStream::connect(lab.tls_address()).await?;
    let name = ServerName::try_from("host-a").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut session = connector.connect(name, socket).await?;
    session
        .write_all(b"GET /v1/host HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    session.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn client(
    lab: &Lab,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(lab.authority.pem().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let lab = Lab::new();
    let config = client(&lab, &[&rustls::version::TLS13]).with_no_client_auth();
    let refused = ask(&lab, config).await.unwrap_err().to_string();
    assert!(refused.contains("CertificateRequired"), "{refused}");
}

#[tokio::test]
async fn another_authority_does_not_count() {
    let lab = Lab::new();
    let other = Authority::new().unwrap();
    // Neither trusts the other: the client is the first to say so.
    let stranger = lab.with_keys(&other.user("eve", DAYS).unwrap());
    let refused = stranger.host().await.unwrap_err();
    assert!(matches!(refused, ClientError::Connect { .. }), "{refused}");

    // A client that trusts the server is refused by it.
    let keys = other.user("eve", DAYS).unwrap();
    let certificate = CertificateDer::from_pem_slice(keys.certificate_pem().as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(keys.key_pem().as_bytes()).unwrap();
    let config = client(&lab, &[&rustls::version::TLS13])
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    assert!(ask(&lab, config).await.is_err());
}

#[tokio::test]
async fn the_server_has_to_be_who_it_should_be() {
    let lab = Lab::new();
    let keys = lab.authority.user("jo", DAYS).unwrap();
    let url = format!("https://localhost:{}", lab.tls_address().port());
    let api = vmferry_service::client::ApiClient::new(&url, Some(&keys.identity().unwrap()));
    let refused = api.unwrap().host().await.unwrap_err();
    assert!(refused.detail().contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn what_is_no_tls_is_not_answered() {
    let lab = Lab::new();
    for bytes in [
        &b"GET /v1/host HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff garbage",
        b"",
    ] {
        let mut socket = TcpStream::connect(lab.tls_address()).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let api = lab.remote("host-b", &[]);
    assert_eq!(api.host().await.unwrap().name, "host-a", "it goes on");
}

#[tokio::test]
async fn hosts_speak_for_themselves_only() {
    let lab = Lab::new();
    let id = "0af7651916cd43dd8448eb211c80319c".to_owned();
    let request = ReceptionRequest {
        offer: offer(),
        migration: id.clone(),
        from: "host-c".to_owned(),
        transport: "quic".to_owned(),
        link_mbit: 0,
        traceparent: None,
    };
    let settled = SettledJobs {
        migration: id.clone(),
        jobs: Vec::new(),
    };
    let (api, other) = (lab.remote("host-b", &[]), lab.remote("host-c", &[]));
    let (status, why) = refused(api.receive(&request).await);
    assert_eq!((status, why.contains("host-c")), (403, true), "{why}");
    assert_eq!(refused(other.told_settled(&settled).await).0, 404);
    other.receive(&request).await.unwrap();
    // What comes from host-c is none of host-b's business.
    assert_eq!(refused(api.told_settled(&settled).await).0, 403);
    assert_eq!(refused(api.forget_reception(&id).await).0, 403);
    assert_eq!(other.told_settled(&settled).await.unwrap().jobs, []);
    other.forget_reception(&id).await.unwrap();
    assert_eq!(refused(other.told_settled(&settled).await).0, 404);
}

#[tokio::test]
async fn a_host_may_have_several_names_and_none_of_them_makes_it_a_user() {
    let lab = Lab::new();
    assert!(lab.authority.issue_for("host-b", &["admin-x"]).is_err());
    let api = lab.remote("host-b.corp", &["host-b"]);
    let request = ReceptionRequest {
        offer: offer(),
        migration: "0".repeat(32),
        from: "host-b".to_owned(),
        transport: "quic".to_owned(),
        link_mbit: 0,
        traceparent: None,
    };
    api.receive(&request).await.unwrap();
    assert_eq!(refused(api.vms().await).0, 403);
}
