//! The event stream.

use crate::common::{Lab, refused, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmferry_service::api::types::{StreamEvent, StreamFrame};
use vmferry_service::client::EventStream;
use vmferry_service::model::{MigrationRequest, ServiceEvent, VmState};

async fn next(stream: &mut EventStream) -> StreamEvent {
    stream.next().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_snapshot_and_then_what_happens() {
    let lab = Lab::new();
    for api in [lab.local(), lab.remote("admin-jo", &[])] {
        let before = api.vms().await.unwrap();
        let migrations = api.migrations(None, None).await.unwrap();
        let mut stream = api.events().await.unwrap();
        let StreamEvent::Frame(StreamFrame::Snapshot(first)) = next(&mut stream).await else {
            panic!("no snapshot");
        };
        assert_eq!((first.vms, first.migrations), (before, migrations));

        let name = format!("vm-{}", lab.local().vms().await.unwrap().len());
        let made = api.create(&spec(&name)).await.unwrap();
        assert_eq!(
            next(&mut stream).await,
            StreamEvent::Change(ServiceEvent::Vm(made))
        );
        let request = MigrationRequest {
            to: "host-b".to_owned(),
            ..MigrationRequest::default()
        };
        let id = api.migrate(&name, &request).await.unwrap().id;
        let StreamEvent::Change(ServiceEvent::Migration(seen)) = next(&mut stream).await else {
            panic!("no migration");
        };
        assert_eq!(seen.id, id);
        api.stop(&name).await.unwrap();
        let StreamEvent::Change(ServiceEvent::Vm(stopped)) = next(&mut stream).await else {
            panic!("no machine");
        };
        assert_eq!(stopped.state, VmState::Stopped);
    }
}

#[tokio::test]
async fn as_browsers_read_it() {
    let lab = Lab::new();
    let mut socket = UnixStream::connect(&lab.socket).await.unwrap();
    let request = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut text = String::new();
    let mut said = false;
    while !text.contains("event: vm-gone\ndata: {\"kind\":\"vm-gone\",\"value\":\"web-1\"}\n\n") {
        let mut piece = [0; 4096];
        let n = socket.read(&mut piece).await.unwrap();
        assert!(n > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&piece[..n]));
        if !said
            && text.contains("event: snapshot\ndata: {\"kind\":\"snapshot\",\"value\":{\"vms\":[]")
        {
            said = true;
            lab.fake.say(ServiceEvent::VmGone("web-1".to_owned()));
        }
    }
    assert!(said);
    assert!(
        text.to_ascii_lowercase()
            .contains("content-type: text/event-stream\r\n")
    );
}

#[tokio::test]
async fn a_slow_reader_is_told_and_let_go() {
    let lab = Lab::new();
    let mut quick = lab.local().events().await.unwrap();
    let mut slow = lab.local().events().await.unwrap();
    next(&mut quick).await;
    next(&mut slow).await;
    // More than sockets hold; the quick one reads each before the next is said.
    let text = "x".repeat(16 << 10);
    for _ in 0..2000 {
        lab.fake.say(ServiceEvent::VmGone(text.clone()));
        assert!(matches!(next(&mut quick).await, StreamEvent::Change(_)));
    }
    let mut got = 0;
    let missed = loop {
        match next(&mut slow).await {
            StreamEvent::Change(_) => got += 1,
            StreamEvent::Frame(StreamFrame::Lagged(lagged)) => break lagged.missed,
            StreamEvent::Frame(frame) => panic!("{frame:?}"),
        }
    };
    assert!(missed > 0);
    assert!(got + missed <= 2000, "{got} and {missed}");
    assert!(slow.next().await.is_none(), "it was the last");
    lab.fake.say(ServiceEvent::VmGone("x".to_owned()));
    assert!(
        matches!(next(&mut quick).await, StreamEvent::Change(_)),
        "others go on"
    );
}

#[tokio::test]
async fn there_is_room_for_so_many() {
    let lab = Lab::new();
    let api = lab.local();
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(api.events().await.unwrap());
    }
    assert_eq!(lab.fake.readers(), 64);
    let full = refused(api.events().await);
    assert_eq!(full.0, 429);
    assert!(full.1.contains("64 event streams are open"), "{}", full.1);
}
