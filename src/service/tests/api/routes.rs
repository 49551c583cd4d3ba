//! The API over its unix socket, through its client: every route.

use crate::common::{Lab, refused, spec};
use vmferry_service::api::{self, Listen, ListenError};
use vmferry_service::client::{ApiClient, ClientError};
use vmferry_service::model::{
    Decision, DrainRequest, MigrationRequest, MigrationState, Offer, Place, ReceptionRequest,
    VmState,
};

fn to(host: &str) -> MigrationRequest {
    MigrationRequest {
        to: host.to_owned(),
        ..MigrationRequest::default()
    }
}

#[tokio::test]
async fn machines() {
    let lab = Lab::new();
    let api = lab.local();
    assert_eq!(api.vms().await.unwrap(), []);
    let made = api.create(&spec("web-1")).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.state),
        ("web-1", VmState::Running)
    );
    assert_eq!(api.vms().await.unwrap(), std::slice::from_ref(&made));
    assert_eq!(api.vm("web-1").await.unwrap(), made);
    assert_eq!(api.pause("web-1").await.unwrap().state, VmState::Paused);
    assert_eq!(api.resume("web-1").await.unwrap().state, VmState::Running);
    assert_eq!(api.verify("web-1").await.unwrap(), "OK");
    assert_eq!(api.settle_storage("web-1", true).await.unwrap(), 3);
    let decision = Decision {
        guest: Place::Here,
        certain: true,
    };
    api.decide("web-1", decision).await.unwrap();
    assert_eq!(api.console("web-1", 5).await.unwrap().serial, "login");
    assert_eq!(api.stop("web-1").await.unwrap().state, VmState::Stopped);
    assert_eq!(api.start("web-1").await.unwrap().state, VmState::Running);
    api.stop("web-1").await.unwrap();
    api.delete_vm("web-1").await.unwrap();
    assert_eq!(refused(api.vm("web-1").await).0, 404);

    let made = lab
        .json("POST", "/v1/vms", r#"{"name":"web-2","ram_mib":64}"#)
        .await;
    assert_eq!(made.status, 201);
    assert!(made.head.contains("location: /v1/vms/web-2"), "{made:?}");
}

#[tokio::test]
async fn migrations() {
    let lab = Lab::new();
    let api = lab.local();
    for name in ["web-1", "web-2"] {
        api.create(&spec(name)).await.unwrap();
    }
    let preflight = api.preflight("web-1", &to("host-b")).await.unwrap();
    assert_eq!(preflight.measured_mbit, Some(1000.0));
    let first = api.migrate("web-1", &to("host-b")).await.unwrap().id;
    let second = api.migrate("web-2", &to("host-b")).await.unwrap().id;

    let ids = |found: Vec<vmferry_service::model::Migration>| -> Vec<String> {
        found.into_iter().map(|m| m.id).collect()
    };
    let both = [second.clone(), first.clone()];
    assert_eq!(ids(api.migrations(None, None).await.unwrap()), both);
    let one = api.migrations(Some("web-1"), None).await.unwrap();
    assert_eq!(ids(one), std::slice::from_ref(&first));
    assert_eq!(refused(api.report(&first).await).0, 409);
    let cancelled = api.cancel(&first).await.unwrap();
    assert_eq!(cancelled.state, MigrationState::Cancelled);
    let state = Some(MigrationState::Cancelled);
    assert_eq!(
        ids(api.migrations(None, state).await.unwrap()),
        std::slice::from_ref(&first)
    );
    let none = api.migrations(Some("web-2"), state).await.unwrap();
    assert_eq!(none, []);

    assert_eq!(api.migration(&first).await.unwrap(), cancelled);
    let report = api.report(&first).await.unwrap();
    assert_eq!(report, crate::common::fake::report(&first));
    assert!(api.trace(&first).await.unwrap()["resourceSpans"].is_array());

    let body = r#"{"to":"host-b","options":{"streams":4,"codec":"zstd:3"}}"#;
    let begun = lab.json("POST", "/v1/vms/web-1/migrate", body).await;
    assert_eq!(begun.status, 202);
    assert!(
        begun.head.contains("location: /v1/migrations/0000"),
        "{begun:?}"
    );
}

#[tokio::test]
async fn the_host_and_its_drain() {
    let lab = Lab::new();
    let api = lab.local();
    assert_eq!(api.host().await.unwrap().name, "host-a");
    assert_eq!(api.health().await.unwrap().status, "ok");
    assert_eq!(refused(api.drain_state().await).0, 404);
    assert_eq!(refused(api.cancel_drain().await).0, 404);
    api.create(&spec("web-1")).await.unwrap();
    let request = DrainRequest {
        to: vec!["host-b".to_owned()],
        ..DrainRequest::default()
    };
    let drain = api.drain(&request).await.unwrap();
    assert_eq!(drain.items.len(), 1);
    assert_eq!(api.drain_state().await.unwrap(), drain);
    assert!(api.cancel_drain().await.unwrap().cancelled);
}

#[tokio::test]
async fn what_is_at_the_root() {
    let lab = Lab::new();
    let api = lab.local();
    assert_eq!(api.page().await.unwrap(), vmferry_service::page::HTML);
    assert!(api.metrics().await.unwrap().contains("vmferry_vms 0"));
    assert_eq!(api.openapi().await.unwrap(), api::openapi::document());
    let page = lab.ask("GET", "/", "", "").await;
    assert!(page.head.contains("content-type: text/html; charset=utf-8"));
    assert!(
        page.head
            .contains("content-security-policy: default-src 'none'")
    );
    assert!(page.head.contains("x-content-type-options: nosniff"));
    let metrics = lab.ask("GET", "/metrics", "", "").await;
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4")
    );
    let head = lab.ask("HEAD", "/v1/vms", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn between_hosts() {
    let lab = Lab::new();
    let api = lab.local();
    let offer = Offer {
        spec: spec("web-1"),
        cpu_features: vec!["avx2".to_owned(), "amx".to_owned()],
        software: "vmferry 0".to_owned(),
        protocol: (1, 1),
    };
    let problems = api.consider(&offer).await.unwrap().problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].what, "this host has no amx");
    let request = ReceptionRequest {
        offer,
        migration: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        from: "host-b".to_owned(),
        transport: "quic".to_owned(),
        link_mbit: 0,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    let reception = api.receive(&request).await.unwrap();
    assert_eq!(refused(api.receive(&request).await).0, 409);
    api.forget_reception(&reception.id).await.unwrap();
    assert_eq!(api.migrations(None, None).await.unwrap(), []);
    // It may be gone already.
    api.forget_reception(&reception.id).await.unwrap();
    for bytes in [0, 1, 8 << 20] {
        assert!(api.sink(bytes).await.unwrap() >= 0.0);
    }
}

#[tokio::test]
async fn many_at_once() {
    let lab = Lab::new();
    let ask = |n: usize| {
        let api = lab.local();
        async move {
            let name = format!("vm-{n}");
            api.create(&spec(&name)).await.unwrap();
            api.pause(&name).await.unwrap();
            api.vms().await.unwrap();
            api.sink(1 << 20).await.unwrap();
        }
    };
    futures_util::future::join_all((0..crate::common::fake::MAX_VMS).map(ask)).await;
    assert_eq!(
        lab.local().vms().await.unwrap().len(),
        crate::common::fake::MAX_VMS
    );
    let full = refused(lab.local().create(&spec("one-more")).await);
    assert_eq!(full.0, 429);
}

#[tokio::test]
async fn what_was_begun_is_carried_through() {
    let lab = Lab::new();
    let asked = tokio::spawn({
        let api = lab.local();
        async move { api.create(&spec("slow")).await }
    });
    lab.fake.reached.notified().await;
    // The client hangs up; the machine is made all the same.
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    lab.fake.release.notify_one();
    lab.fake.finished.notified().await;
    assert_eq!(lab.local().vm("slow").await.unwrap().name, "slow");
}

#[tokio::test]
async fn a_stop_lets_requests_finish() {
    let lab = Lab::new();
    let api = lab.local();
    let mut events = api.events().await.unwrap();
    events.next().await.unwrap().unwrap();
    let asked = tokio::spawn({
        let api = api.clone();
        async move { api.create(&spec("slow")).await }
    });
    lab.fake.reached.notified().await;
    let (fake, socket) = (lab.fake.clone(), lab.socket.clone());
    let stop = tokio::spawn(lab.handle.stop());
    assert!(events.next().await.is_none(), "streams end");
    assert!(!socket.exists());
    fake.release.notify_one();
    assert_eq!(asked.await.unwrap().unwrap().name, "slow");
    stop.await.unwrap();
    let gone = api.host().await.unwrap_err();
    assert!(matches!(gone, ClientError::Connect { .. }), "{gone}");
    assert!(gone.detail().contains("does the service run"), "{gone}");
}

#[tokio::test]
async fn two_do_not_listen_at_one_socket() {
    let lab = Lab::new();
    let again = Listen {
        unix: Some(lab.socket.clone()),
        tls: None,
    };
    let taken = api::serve(lab.fake.clone(), again).unwrap_err();
    assert!(matches!(taken, ListenError::Taken(_)), "{taken}");
    let nowhere = api::serve(lab.fake.clone(), Listen::default()).unwrap_err();
    assert!(matches!(nowhere, ListenError::Nowhere));
    assert_eq!(lab.local().host().await.unwrap().name, "host-a");
}

#[tokio::test]
async fn strange_servers() {
    let dir = tempfile::tempdir().unwrap();
    for said in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyz",
        "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        "",
    ] {
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let api = ApiClient::new(&format!("unix:{}", path.display()), None).unwrap();
        let server = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await.unwrap();
            socket.write_all(said.as_bytes()).await.unwrap();
        });
        let failed = api.host().await.unwrap_err();
        assert!(failed.status().is_none(), "{failed}");
        assert!(failed.detail().contains("unix:"), "{failed}");
        server.await.unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
