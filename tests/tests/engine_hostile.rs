//! Damage on the way, and peers that mean harm: nothing of it reaches the guest.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message::{Hello, Message};
use vmferry_protocol::version::Speaks;
use vmferry_protocol::wire::{FrameDecoder, encode, encode_preamble};
use vmferry_tests::engine::{
    Ended, Guest, Leaks, Over, PageStep, Plan, Script, Step, Way, begin, begin_after, guard, run,
    settle,
};
use vmferry_transports::{Connection, Connector};

async fn clean(guest: Guest, over: Over) -> Guest {
    let ended = begin(
        &guest,
        &Plan {
            over,
            ..Plan::default()
        },
    )
    .await
    .end()
    .await;
    assert!(ended.completed(), "{}", ended.why_source());
    settle(guest, ended).await
}

/// The migration fails, with these words at both sides; then another succeeds.
async fn refused(guest: Guest, script: &Arc<Script>, words: &[&str]) -> Guest {
    let ended: Ended = begin(&guest, &Plan::scripted(script)).await.end().await;
    assert!(!ended.completed(), "{words:?}: it went on");
    for word in words {
        let (here, there) = (ended.why_source(), ended.why_destination());
        assert!(here.contains(word), "{word:?} is not in: {here}");
        assert!(
            there.contains(word) || ended.unheard,
            "{word:?} is not in: {there}"
        );
    }
    let guest = settle(guest, ended).await;
    clean(guest, Over::Memory).await
}

/// Frame `number` with the byte `at` from its beginning or, if negative, its end changed.
fn damaged(number: usize, at: isize) -> Arc<Script> {
    Script::pages(move |frame| {
        if frame.number != number || (number == 0 && frame.stream > 0) {
            return PageStep::Pass;
        }
        let mut bytes = frame.parts.concat();
        let at = at.rem_euclid(bytes.len() as isize);
        bytes[at.unsigned_abs()] ^= 0x40;
        PageStep::Bytes(bytes)
    })
}

#[test]
fn damaged_pages_are_refused() {
    run(async {
        let mut guest = clean(Guest::small().await, Over::Memory).await;
        let leaks = Leaks::count();
        for at in [-1, -1000, 5, 12, 20] {
            guest = refused(guest, &damaged(2, at), &["a chunk"]).await;
            leaks.none().await;
        }
        // A header longer than any.
        refused(guest, &damaged(1, 2), &["a frame of"]).await;
        leaks.none().await;
    });
}

#[test]
fn a_page_stream_with_a_wrong_preamble_brings_nothing() {
    run(async {
        let mut guest = clean(Guest::small().await, Over::Memory).await;
        for at in [0, 10, 30, 43] {
            guest = refused(guest, &damaged(0, at), &["page stream"]).await;
        }
    });
}

#[test]
fn a_damaged_state_is_refused() {
    run(async {
        let mut guest = clean(Guest::small().await, Over::Memory).await;
        let script = Script::new(|_, message| match message {
            Message::State { blob, digest } => {
                let mut blob = blob.clone();
                blob[0] ^= 1;
                let digest = *digest;
                Step::Bytes(encode(&Message::State { blob, digest }).unwrap())
            }
            _ => Step::Pass,
        });
        guest = refused(guest, &script, &["the state was damaged on the way"]).await;
        // One that is whole, but makes no sense.
        let script = Script::new(|_, message| match message {
            Message::State { .. } => {
                let blob = vec![7; 300];
                let digest = vmferry_protocol::wire::digest(&blob);
                Step::Bytes(encode(&Message::State { blob, digest }).unwrap())
            }
            _ => Step::Pass,
        });
        refused(guest, &script, &["saved state refused"]).await;
    });
}

#[test]
fn messages_that_make_no_sense_end_the_migration() {
    run(async {
        let mut guest = clean(Guest::small().await, Over::Memory).await;
        let leaks = Leaks::count();
        let garbage = |name: &'static str, bytes: Vec<u8>| {
            Script::new(move |said, _| {
                if said.name == name && said.of_kind == 1 {
                    Step::Bytes(bytes.clone())
                } else {
                    Step::Pass
                }
            })
        };
        let nonsense = [
            9, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        for bytes in [nonsense.to_vec(), vec![0xff; 64]] {
            for name in ["Offer", "State", "AllSent", "Welcome", "Ack"] {
                guest = refused(guest, &garbage(name, bytes.clone()), &["connection"]).await;
                leaks.none().await;
            }
        }
        // Whole messages in the wrong place.
        let commit = || encode(&Message::Commit).unwrap();
        let all = encode(&Message::AllSent { chunks: 0 }).unwrap();
        for (name, bytes) in [("Offer", commit()), ("PassBegin", commit()), ("Offer", all)] {
            guest = refused(guest, &garbage(name, bytes), &["makes no sense"]).await;
        }
    });
}

#[test]
fn a_wrong_token_or_version_is_told_to_the_source() {
    run(async {
        let guest = clean(Guest::small().await, Over::Memory).await;
        let script = Script::new(|_, message| match message {
            Message::Hello(hello) => {
                let mut hello = hello.clone();
                hello.token = Token::new([1; 16]);
                Step::Bytes(encode(&Message::Hello(hello)).unwrap())
            }
            _ => Step::Pass,
        });
        let under = begin(&guest, &Plan::scripted(&script)).await;
        let canceller = under.destination.operator();
        let mut source = under.source;
        let end = guard("the source", &mut source.ended).await.unwrap();
        let why = format!("{:?}", end.outcome);
        assert!(
            why.contains("Token") && why.contains("does not show the token"),
            "{why}"
        );
        // It still waits for the right one.
        let mut destination = under.destination;
        assert!(destination.ended.try_recv().is_err());
        canceller.cancel();
        guard("the destination", &mut destination.ended)
            .await
            .unwrap();
        clean(guest, Over::Memory).await;
    });
}

/// What strangers do, with a certificate that is good.
async fn strangers(
    connector: Arc<dyn Connector>,
    token: Token,
    migration: MigrationId,
    silent_ones: usize,
) {
    let wrong = Token::new([9; 16]);
    // Silent ones, which go on being silent until all is over.
    let mut silent = Vec::new();
    for _ in 0..silent_ones {
        silent.push(connector.connect(6).await.unwrap());
    }
    // One that comes and goes.
    drop(connector.connect(3).await.unwrap());
    let rejoin = |token, migration| Message::Rejoin { migration, token };
    let firsts = [
        encode(&rejoin(wrong, migration)).unwrap(),
        encode(&rejoin(token, MigrationId([3; 16]))).unwrap(),
        encode(&Message::Commit).unwrap(),
        vec![0xff; 100],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for first in firsts {
        let Connection {
            mut control,
            mut pages,
        } = connector.connect(2).await.unwrap();
        control.writer.write_all(&first).await.unwrap();
        control.writer.flush().await.unwrap();
        // One page stream of garbage, one with the wrong token and a chunk's beginning.
        let _ = pages[0].send(&[Bytes::from_static(&[0x55; 4096])]).await;
        let preamble = encode_preamble(migration, &wrong, 0);
        let _ = pages[1].send(&[Bytes::copy_from_slice(&preamble)]).await;
        // Turned away, with or without a word.
        let mut answer = Vec::new();
        let _ = guard("a stranger", control.reader.read_to_end(&mut answer)).await;
        let mut decoder = FrameDecoder::default();
        decoder.feed(&answer);
        if let Ok(Some(message)) = decoder.next_message() {
            assert!(matches!(message, Message::Abort { .. }), "{message:?}");
        }
    }
    drop(silent);
}

#[test]
fn strangers_during_a_migration_change_nothing() {
    run(async {
        for over in Over::ALL {
            let guest = clean(Guest::small().await, over).await;
            let leaks = Leaks::count();
            type Come = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;
            let come: Come = Arc::default();
            let on_time = come.clone();
            let script = Script::new(move |said, _| {
                // In pre-copy, and at the switchover.
                if said.way == Way::Out && ["PassBegin", "State"].contains(&said.name) {
                    on_time.get().unwrap()();
                }
                Step::Pass
            });
            let plan = Plan {
                over,
                ..Plan::scripted(&script)
            };
            let under = begin(&guest, &plan).await;
            let (connector, token, id) = (under.connector.clone(), under.token, under.migration);
            let (sent, mut came) = tokio::sync::mpsc::unbounded_channel();
            let _ = come.set(Box::new(move || {
                let task = tokio::spawn(strangers(connector.clone(), token, id, 20));
                let _ = sent.send(task);
            }));
            let ended = under.end().await;
            assert!(ended.completed(), "{over:?}: {}", ended.why_source());
            assert_eq!(script.connections(), 1, "the source was thrown out");
            while let Ok(task) = came.try_recv() {
                // Those that come too late find nobody.
                task.abort();
                let _ = task.await;
            }
            drop((came, come, plan, script));
            let guest = settle(guest, ended).await;
            leaks.none().await;
            drop(guest);
        }
    });
}

#[test]
fn strangers_before_the_source_change_nothing() {
    run(async {
        for over in Over::ALL {
            let guest = Guest::small().await;
            let plan = Plan {
                over,
                ..Plan::default()
            };
            let come = async |connector, token, id| strangers(connector, token, id, 20).await;
            let ended = begin_after(&guest, &plan, come).await.end().await;
            assert!(ended.completed(), "{over:?}: {}", ended.why_source());
            settle(guest, ended).await;
        }
    });
}

#[test]
fn a_peer_that_floods_is_heard_or_cut_off() {
    run(async {
        let guest = clean(Guest::small().await, Over::Memory).await;
        let leaks = Leaks::count();
        // Each of the source's first messages a thousand times is a mistake of its own; a ping
        // too many is none.
        let script = Script::new(|said, message| match message {
            Message::Ping { .. } if said.of_kind == 1 => Step::Times(50_000),
            _ => Step::Pass,
        });
        let ended = begin(&guest, &Plan::scripted(&script)).await.end().await;
        let guest = settle(guest, ended).await;
        leaks.none().await;
        clean(guest, Over::Memory).await;
    });
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    run(async {
        let guest = clean(Guest::small().await, Over::Memory).await;
        let leaks = Leaks::count();
        // The source is out of the way; its place is taken by somebody who has the token.
        let script = Script::new(|_, _| Step::Cut);
        let under = begin(&guest, &Plan::scripted(&script)).await;
        guard("the source", under.source.ended).await.unwrap();
        let mut peer = under.connector.connect(0).await.unwrap().control;
        let hello = Message::Hello(Hello {
            speaks: Speaks::CURRENT,
            software: "a test".to_owned(),
            migration: under.migration,
            token: under.token,
            streams: 1,
            trace: None,
        });
        let hello = encode(&hello).unwrap();
        peer.writer.write_all(&hello).await.unwrap();
        let pings = encode(&Message::Ping { nonce: 1 << 60 })
            .unwrap()
            .repeat(1000);
        guard("the flood", async {
            while peer.writer.write_all(&pings).await.is_ok() {}
        })
        .await;
        let end = guard("the destination", under.destination.ended)
            .await
            .unwrap();
        let why = end.failure.unwrap();
        assert!(why.contains("does not read"), "{why}");
        drop((peer, under.connector, script));
        leaks.none().await;
        clean(guest, Over::Memory).await;
    });
}
