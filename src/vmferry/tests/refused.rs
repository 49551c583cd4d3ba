//! Peers that do not fit: nobody listens, wrong certificates, names, tokens, versions. The migration
//! fails with words that say why, and the guest goes on at the source as if nothing had happened.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use std::net::{SocketAddr, TcpListener, UdpSocket};

use common::lab::{Host, Lab, Move};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use vmferry_engine::report::ReportOutcome;
use vmferry_machine::MachineKind;
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message::{AbortCode, Hello, Message};
use vmferry_protocol::version::{Agreed, Features, Speaks};
use vmferry_protocol::wire::{FrameDecoder, encode};
use vmferry_transports::keys::KeyFiles;
use vmferry_transports::{
    Control, Incoming, LinkHint, Listener, TlsIdentity, TransportKind, connector, listen,
};
use vmferry_vmm::api::Request;

on_each_machine!(
    nobody_listens,
    certificates_of_another_authority,
    another_name,
    another_token,
    a_destination_of_another_version,
    a_destination_that_chooses_what_was_not_offered,
    options_that_make_no_sense,
);

/// Two hosts, a guest on the first, and what it says when the move of `change` has failed. The
/// destination waits on, unless there is none.
async fn fails<F>(kind: MachineKind, lab: &Lab, b: &mut Host, mut change: F) -> Vec<String>
where
    F: AsyncFnMut(&mut Move),
{
    let mut a = lab.host("a").await;
    a.boot(common::busy_guest(kind)).await;
    let used = a.used_with_ram().await;
    let mut reasons = Vec::new();
    for transport in ["quic", "tcp"] {
        let mut to_b = Move::new(&a, b).over(transport);
        to_b.listen(b).await;
        change(&mut to_b).await;
        to_b.depart(&mut a).await;
        let reason = a.stays(ReportOutcome::Failed).await;
        assert!(!reason.contains('\n'), "{reason}");
        reasons.push(reason);
        assert_eq!(
            b.stops_waiting().await,
            "cancelled",
            "it was none of its business"
        );
        a.runs_unharmed().await;
    }
    a.settles(used).await;
    reasons
}

/// All of `reasons` say `words`.
fn all_say(reasons: &[String], words: &str) {
    for reason in reasons {
        assert!(reason.contains(words), "no {words:?} in {reason:?}");
    }
}

/// A port that was free a moment ago, for both transports.
fn closed_port() -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    drop(UdpSocket::bind(address));
    address
}

async fn nobody_listens(kind: MachineKind) {
    let lab = Lab::new();
    let mut b = lab.host("b").await;
    let reasons = fails(kind, &lab, &mut b, async |to| to.migrate.to = closed_port()).await;
    all_say(&reasons, "does not listen there");
}

async fn certificates_of_another_authority(kind: MachineKind) {
    let (lab, other) = (Lab::new(), Lab::new());
    let mut b = other.host("b").await;
    let reasons = fails(kind, &lab, &mut b, async |_| {}).await;
    all_say(&reasons, "is not trusted");
    all_say(&reasons, "certificates of the same authority");
}

async fn another_name(kind: MachineKind) {
    let lab = Lab::new();
    let mut b = lab.host("b").await;
    let name = async |to: &mut Move| "c".clone_into(&mut to.migrate.server_name);
    let reasons = fails(kind, &lab, &mut b, name).await;
    all_say(&reasons, "name it was made for");
}

async fn another_token(kind: MachineKind) {
    let lab = Lab::new();
    let mut b = lab.host("b").await;
    let token = async |to: &mut Move| to.migrate.token = "f".repeat(32);
    let reasons = fails(kind, &lab, &mut b, token).await;
    all_say(&reasons, "token");
}

async fn options_that_make_no_sense(kind: MachineKind) {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.host("a").await, lab.host("b").await);
    a.boot(common::busy_guest(kind)).await;
    let used = (a.used_with_ram().await, b.used().await);
    let right = Move::new(&a, &b);
    type Change = fn(&mut Move);
    let wrong: [(Change, &str); 9] = [
        (|m| m.migrate.transport = "udp".to_owned(), "udp"),
        (|m| m.migrate.codec = "rar".to_owned(), "rar"),
        (|m| m.migrate.tracker = "t".to_owned(), "kvm-log"),
        (|m| m.migrate.token = "short".to_owned(), "hexadecimal"),
        (|m| m.migrate.streams = 0, "page streams"),
        (|m| m.migrate.max_blackout_ms = -1.0, "not a time"),
        // Has no JSON.
        (|m| m.migrate.max_blackout_ms = f64::NAN, "not a request"),
        (|m| m.migrate.tls.key = "/no/such".into(), "/no/such"),
        (|m| m.migrate.server_name = "no name".to_owned(), "no name"),
    ];
    for (change, words) in wrong {
        let mut bad = right.clone();
        change(&mut bad);
        let refused = a.call(Request::Migrate(bad.migrate)).await;
        let refused = refused.expect_err(words).to_string();
        assert!(refused.contains(words), "no {words:?} in {refused:?}");
    }
    let wrong: [(Change, &str); 3] = [
        (|m| m.receive.transport = "udp".to_owned(), "udp"),
        (|m| m.receive.tls.ca = "/no/such".into(), "/no/such"),
        (
            |m| m.receive.listen.set_ip([192, 0, 2, 1].into()),
            "192.0.2.1",
        ),
    ];
    for (change, words) in wrong {
        let mut bad = right.clone();
        change(&mut bad);
        let refused = b.call(Request::Receive(bad.receive)).await;
        let refused = refused.expect_err(words).to_string();
        assert!(refused.contains(words), "no {words:?} in {refused:?}");
    }
    b.is_empty().await;
    a.runs_unharmed().await;
    a.settles(used.0).await;
    b.settles(used.1).await;
    right.complete(&mut a, &mut b).await;
    b.runs_unharmed().await;
}

const KINDS: [TransportKind; 2] = [TransportKind::Quic, TransportKind::Tcp];

fn identity(keys: &KeyFiles) -> TlsIdentity {
    TlsIdentity::from_files(&keys.ca, &keys.certificate, &keys.key).unwrap()
}

/// The next message on a control stream.
async fn hear(control: &mut Control) -> Message {
    let mut decoder = FrameDecoder::default();
    let mut buffer = [0; 1024];
    loop {
        if let Some(message) = decoder.next_message().unwrap() {
            return message;
        }
        let n = control.reader.read(&mut buffer).await.unwrap();
        assert_ne!(n, 0, "it said nothing");
        decoder.feed(&buffer[..n]);
    }
}

async fn say(control: &mut Control, message: &Message) {
    let frame = encode(message).unwrap();
    control.writer.write_all(&frame).await.unwrap();
    control.writer.flush().await.unwrap();
}

/// A destination that answers `Hello` by `answer`, whatever it is, and then says no more.
async fn answers(mut listener: Box<dyn Listener>, answer: Message) {
    let (mut pages, mut tasks) = (Vec::new(), JoinSet::new());
    loop {
        match listener.accept().await.unwrap() {
            Incoming::Page(stream) => pages.push(stream),
            // Beside the page streams: the source says nothing until it has them all.
            Incoming::Control(mut control) => {
                let answer = answer.clone();
                tasks.spawn(async move {
                    let hello = hear(&mut control).await;
                    assert!(matches!(hello, Message::Hello(_)), "{hello:?}");
                    say(&mut control, &answer).await;
                    std::future::pending::<()>().await;
                });
            }
        }
    }
}

/// Why the guest of a source stays where it is, when the destination answers so to its `Hello`.
async fn stays_by(kind: MachineKind, answer: &Message) -> Vec<String> {
    let lab = Lab::new();
    let (mut a, b) = (lab.host("a").await, lab.host("b").await);
    a.boot(common::busy_guest(kind)).await;
    let mut reasons = Vec::new();
    for transport in KINDS {
        let any = ([127, 0, 0, 1], 0).into();
        let identity = identity(&b.keys);
        let listener = listen(transport, any, &identity, LinkHint::default());
        let listener = listener.await.unwrap();
        let mut to_b = Move::new(&a, &b).over(transport.name());
        to_b.migrate.to = listener.local_addr().unwrap();
        to_b.depart(&mut a).await;
        tokio::select! {
            () = answers(listener, answer.clone()) => {}
            reason = a.stays(ReportOutcome::Failed) => reasons.push(reason),
        }
        a.runs_unharmed().await;
    }
    reasons
}

async fn a_destination_of_another_version(kind: MachineKind) {
    let answer = Message::Abort {
        code: AbortCode::Version,
        phase: "AwaitHello".to_owned(),
        detail: "this side speaks protocol versions 99 to 99".to_owned(),
    };
    all_say(&stays_by(kind, &answer).await, "versions 99 to 99");
}

async fn a_destination_that_chooses_what_was_not_offered(kind: MachineKind) {
    let answer = Message::Welcome {
        software: "test".to_owned(),
        agreed: Agreed {
            version: 99,
            features: Features::ALL,
        },
    };
    all_say(&stays_by(kind, &answer).await, "was not offered");
}

#[test]
fn source_of_another_version() {
    common::run(async {
        let lab = Lab::new();
        let (a, mut b) = (lab.host("a").await, lab.host("b").await);
        let used = b.used().await;
        for transport in KINDS {
            let mut to_b = Move::new(&a, &b).over(transport.name());
            to_b.listen(&mut b).await;
            let (to, hint) = (to_b.migrate.to, LinkHint::default());
            let source = connector(transport, to, "b", &identity(&a.keys), hint, None);
            let connection = source.unwrap().connect(1).await.unwrap();
            let mut control = connection.control;
            let token: Token = to_b.migrate.token.parse().unwrap();
            let hello = Hello {
                speaks: Speaks {
                    oldest: 99,
                    newest: 99,
                    ..Speaks::CURRENT
                },
                software: "the future".to_owned(),
                migration: MigrationId([9; 16]),
                token,
                streams: 1,
                trace: None,
            };
            say(&mut control, &Message::Hello(hello)).await;
            let Message::Abort { code, detail, .. } = hear(&mut control).await else {
                panic!("it did not refuse");
            };
            assert_eq!(code, AbortCode::Version);
            assert!(detail.contains("99 to 99: upgrade the older"), "{detail}");
            let received = b.arrival().await;
            assert!(!received.completed);
            assert_eq!(received.reason, Some(detail));
            b.is_empty().await;
        }
        b.settles(used).await;
    });
}
