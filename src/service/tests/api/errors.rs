//! Every way to be refused, and that the refusal is a problem document.

use crate::common::{Lab, refused, spec};
use vmferry_service::model::{Decision, MigrationRequest, Place};

#[tokio::test]
async fn what_the_host_refuses() {
    let lab = Lab::new();
    let api = lab.local();
    api.create(&spec("web-1")).await.unwrap();
    let missing = (404, "there is no machine web-9 on this host".to_owned());
    assert_eq!(refused(api.vm("web-9").await), missing);
    assert_eq!(refused(api.create(&spec("web-1")).await).0, 409);
    assert_eq!(refused(api.delete_vm("web-1").await).0, 409);
    assert_eq!(refused(api.settle_storage("web-1", false).await).0, 422);
    let uncertain = Decision {
        guest: Place::Elsewhere,
        certain: false,
    };
    assert_eq!(refused(api.decide("web-1", uncertain).await).0, 422);
    let request = MigrationRequest {
        to: "unreachable".to_owned(),
        ..MigrationRequest::default()
    };
    let peer = (502, "unreachable: no route".to_owned());
    assert_eq!(refused(api.preflight("web-1", &request).await), peer);
    let failed = (500, "its disk is gone".to_owned());
    assert_eq!(refused(api.vm("fails").await), failed);
    let panicked = refused(api.vm("panics").await);
    assert_eq!(panicked.0, 500);
    assert!(
        panicked.1.contains("by a mistake in the service"),
        "{panicked:?}"
    );
    assert_eq!(api.vms().await.unwrap().len(), 1, "it goes on");
}

#[tokio::test]
async fn routes_and_methods_that_are_not() {
    let lab = Lab::new();
    for path in [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/vms/",
        "/v2/host",
        "/v1/vms/a/b",
        "/v1/vms/a%2Fb",
    ] {
        lab.ask("GET", path, "", "").await.problem(404, path);
    }
    for (method, path, allow) in [
        ("DELETE", "/v1/vms", "get, head, post"),
        ("PUT", "/v1/vms/a", "get, head, delete"),
        ("GET", "/v1/vms/a/pause", "post"),
        ("PATCH", "/v1/host/drain", "get, head, post, delete"),
        ("HEAD", "/v1/events", "get"),
        ("OPTIONS", "/", "get, head"),
        ("BREW", "/healthz", "get, head"),
    ] {
        let answer = lab.ask(method, path, "", "").await;
        assert!(
            answer.head.contains(&format!("allow: {allow}\r\n")),
            "{answer:?}"
        );
        if method == "HEAD" {
            assert_eq!((answer.status, answer.body.as_str()), (405, ""));
        } else {
            answer.problem(405, path);
        }
    }
}

#[tokio::test]
async fn names_that_can_name_nothing() {
    let lab = Lab::new();
    for name in ["A", "..", "%2e%2e", "a%00b", "%ff", "-a", "a.b"] {
        let path = format!("/v1/vms/{name}/pause");
        let why = lab.ask("POST", &path, "", "").await.problem(404, &path);
        assert!(why.contains("names no machine"), "{why}");
    }
    for path in ["/v1/migrations/1", "/v1/migrations/..%2fx/trace"] {
        lab.ask("GET", path, "", "").await.problem(404, path);
    }
    let path = "/v1/peer/receive/a.b";
    lab.ask("DELETE", path, "", "").await.problem(404, path);
}

#[tokio::test]
async fn bodies_that_do_not_fit() {
    let lab = Lab::new();
    let path = "/v1/vms";
    let what = |status, body: &'static str| {
        let lab = &lab;
        async move { lab.json("POST", path, body).await.problem(status, path) }
    };
    let why = what(400, "{\"name\": \"a\",\n nonsense}").await;
    assert!(
        why.contains("no JSON") && why.contains("line 2 column 2"),
        "{why}"
    );
    assert!(what(400, "").await.contains("EOF"));
    assert!(
        what(400, r#"{"name":"a","ram_mib":2} {}"#)
            .await
            .contains("goes on after")
    );
    assert!(
        what(422, r#"{"name":"a"}"#)
            .await
            .contains("missing field `ram_mib`")
    );
    let why = what(422, r#"{"name":"a","ram_mib":64,"vcpu":2}"#).await;
    assert!(why.starts_with("vcpu: unknown field `vcpu`"), "{why}");
    assert!(why.ends_with("did you mean `vcpus`?"), "{why}");
    let why = what(422, r#"{"name":"a","ram_mib":"64"}"#).await;
    assert!(why.starts_with("ram_mib: invalid type"), "{why}");
    let why = what(
        422,
        r#"{"name":"A","ram_mib":63,"vcpus":0,"disks":[{"source":"x"}]}"#,
    )
    .await;
    for field in [
        "name: ",
        "ram_mib: ",
        "vcpus: ",
        "disks[0].source: 'x' names no disk",
    ] {
        assert!(why.contains(field), "{field} in {why}");
    }
    let path = "/v1/vms/a/migrate";
    let body = r#"{"to":"b","options":{"codec":"gzip","streams":65,"max_blackout_ms":-1}}"#;
    let why = lab.json("POST", path, body).await.problem(422, path);
    assert!(
        why.contains("options.codec: there is no codec 'gzip'"),
        "{why}"
    );
    assert!(why.contains("options.streams: ") && why.contains("options.max_blackout_ms: "));
}

#[tokio::test]
async fn bodies_that_are_not_read() {
    let lab = Lab::new();
    let path = "/v1/vms";
    let body = r#"{"name":"a","ram_mib":64}"#;
    let why = lab.ask("POST", path, "", body).await.problem(415, path);
    assert!(
        why.contains("there is no Content-Type: send application/json"),
        "{why}"
    );
    let text = "Content-Type: text/plain\r\n";
    lab.ask("POST", path, text, body).await.problem(415, path);
    let json = "Content-Type: Application/JSON; charset=utf-8\r\n";
    assert_eq!(lab.ask("POST", path, json, body).await.status, 201);

    // Both with a length, and in chunks without one.
    let large = format!("{}{}", body, " ".repeat(1 << 20));
    lab.json("POST", path, &large).await.problem(413, path);
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let answer = lab.raw(chunked.as_bytes()).await;
    crate::common::Answer::parse(&answer).problem(413, path);
    let path = "/v1/peer/sink";
    lab.ask("POST", path, text, "x").await.problem(415, path);
    let too_much = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\n\r\n",
        u64::MAX / 2
    );
    let mut too_much = too_much.into_bytes();
    too_much.resize(too_much.len() + (65 << 20), 0);
    let answer = lab.raw(&too_much).await;
    crate::common::Answer::parse(&answer).problem(413, path);
}

#[tokio::test]
async fn queries_that_do_not_fit() {
    let lab = Lab::new();
    for (path, query, what) in [
        ("/v1/migrations", "sate=running", "did you mean `state`?"),
        ("/v1/migrations", "state=runing", "did you mean `running`?"),
        ("/v1/migrations", "vm=A", "names no machine"),
        ("/v1/migrations", "vm=a&vm=b", "duplicate field"),
        ("/v1/vms/a/console", "most_bytes=0", "give 1 to 1048576"),
        (
            "/v1/vms/a/console",
            "most_bytes=-1",
            "the query does not fit",
        ),
    ] {
        let answer = lab.ask("GET", &format!("{path}?{query}"), "", "").await;
        let why = answer.problem(400, path);
        assert!(why.contains(what), "{query}: {why}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let lab = Lab::new();
    lab.local().create(&spec("web-1")).await.unwrap();
    let path = "/v1/vms/web-1/pause";
    for (site, status) in [
        ("cross-site", 403),
        ("same-site", 403),
        ("same-origin", 200),
    ] {
        let header = format!("Sec-Fetch-Site: {site}\r\n");
        assert_eq!(
            lab.ask("POST", path, &header, "").await.status,
            status,
            "{site}"
        );
    }
}

#[tokio::test]
async fn bytes_that_are_no_request() {
    let lab = Lab::new();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"\xff\xfe\n\n",
    ] {
        let answer = lab.raw(garbage).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    let mut huge = b"GET /v1/host HTTP/1.1\r\nHost: localhost\r\nX-Huge: ".to_vec();
    huge.resize(huge.len() + (1 << 20), b'a');
    huge.extend_from_slice(b"\r\n\r\n");
    let answer = lab.raw(&huge).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let mut many = b"GET /v1/host HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    for n in 0..1000 {
        many.extend_from_slice(format!("X-{n}: y\r\n").as_bytes());
    }
    many.extend_from_slice(b"\r\n");
    let answer = lab.raw(&many).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    assert_eq!(
        lab.local().host().await.unwrap().name,
        "host-a",
        "it goes on"
    );
}

#[tokio::test]
async fn a_socket_that_is_forwarded_to_a_port_answers_to_localhost_only() {
    let lab = Lab::new();
    let ask = async |host: &str| {
        let request = format!("GET /v1/host HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        crate::common::Answer::parse(&lab.raw(request.as_bytes()).await).status
    };
    for good in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080"] {
        assert_eq!(ask(good).await, 200, "{good}");
    }
    for bad in [
        "evil.example",
        "localhost.evil.example",
        "evil:8080",
        "127.0.0.1.x",
    ] {
        assert_eq!(ask(bad).await, 403, "{bad}");
    }
}
