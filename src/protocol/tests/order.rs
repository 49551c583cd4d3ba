//! The cores spoken to directly: messages and events out of order, strangers, garbage.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;
use vmferry_protocol::destination::{
    Destination, DestinationConfig, DestinationEvent, DestinationOutput,
};
use vmferry_protocol::ids::{ChunkId, MigrationId, Token};
use vmferry_protocol::message::{
    AbortCode, Hello, Message, Prepared, Resumed, RunState, VERSION, VmShape,
};
use vmferry_protocol::ownership::{Persist, Record, Stored};
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::{Source, SourceConfig, SourceEvent, SourceOutput};
use vmferry_protocol::wire::digest;
use vmferry_protocol::{PageRange, PageSet, RamLayout};

const MIGRATION: MigrationId = MigrationId([1; 16]);
const TOKEN: Token = Token::new([2; 16]);
const T: Duration = Duration::from_secs(1);

fn layout() -> RamLayout {
    RamLayout::try_from(vec![PageRange::new(0, 256)]).expect("one region")
}

fn shape() -> VmShape {
    VmShape {
        ram: layout(),
        vcpus: 1,
        cpu_features: Vec::new(),
        config: Vec::new(),
        run_state: RunState::Running,
    }
}

fn hello(token: Token, version: u16) -> Message {
    Message::Hello(Hello {
        version,
        software: "test".to_owned(),
        migration: MIGRATION,
        token,
        streams: 2,
    })
}

fn destination() -> Destination {
    let config = DestinationConfig {
        token: TOKEN,
        silence: 10 * T,
        linger: 60 * T,
        software: "test".to_owned(),
    };
    let mut destination = Destination::new(config, T);
    destination.handle_event(T, DestinationEvent::Connected);
    destination
}

fn source() -> Source {
    let config = SourceConfig {
        migration: MIGRATION,
        token: TOKEN,
        streams: 2,
        shape: shape(),
        limits: Limits::default(),
        window_pages: 128,
        fixed_cost: Duration::from_millis(1),
        silence: 10 * T,
        pause_deadline: 5 * T,
        reconnect_for: 60 * T,
        software: "test".to_owned(),
    };
    Source::new(config, T)
}

fn on_disk(persist: Persist) -> Stored {
    persist.store(|_| Ok::<(), Infallible>(())).unwrap()
}

fn outputs(destination: &mut Destination) -> Vec<DestinationOutput> {
    std::iter::from_fn(|| destination.poll_output()).collect()
}

fn record(outputs: Vec<DestinationOutput>) -> Stored {
    let persist = outputs.into_iter().find_map(|o| match o {
        DestinationOutput::Persist(persist) => Some(persist),
        _ => None,
    });
    on_disk(persist.expect("a record to be stored"))
}

/// A destination with all pages and state, about to write `prepared`; nothing polled since.
fn complete() -> (Destination, Vec<DestinationOutput>) {
    let mut d = destination();
    d.handle_message(T, hello(TOKEN, VERSION));
    d.handle_message(T, Message::Offer(Box::new(shape())));
    d.handle_event(T, DestinationEvent::MachineReady);
    let blob = vec![9; 10];
    d.handle_message(
        T,
        Message::State {
            digest: digest(&blob),
            blob,
        },
    );
    d.handle_message(T, Message::AllSent { chunks: 2 });
    let _ = outputs(&mut d);
    let chunks = vec![ChunkId(1), ChunkId(2)];
    d.handle_event(T, DestinationEvent::ChunksApplied(chunks));
    // The driver restores at once, before it polls again.
    let first = d.poll_output();
    assert!(matches!(
        first,
        Some(DestinationOutput::RestoreState { .. })
    ));
    d.handle_event(T, DestinationEvent::StateRestored { took: T });
    let next = d.poll_output().into_iter().collect();
    (d, next)
}

fn prepared() -> Destination {
    let (mut d, next) = complete();
    d.handle_event(
        T,
        DestinationEvent::Persisted {
            stored: record(next),
            took: T,
        },
    );
    let _ = outputs(&mut d);
    d
}

#[test]
fn every_acknowledgement_comes_before_prepared_however_the_driver_polls() {
    let (mut d, next) = complete();
    d.handle_event(
        T,
        DestinationEvent::Persisted {
            stored: record(next),
            took: T,
        },
    );
    let names: Vec<_> = outputs(&mut d)
        .iter()
        .filter_map(|o| match o {
            DestinationOutput::Send(m) => Some(m.name()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["Ack", "Prepared"]);
}

#[test]
fn a_stranger_that_connects_to_a_prepared_destination_changes_nothing() {
    let bad = [
        Message::Commit,
        Message::Abort {
            code: AbortCode::Failed,
            phase: String::new(),
            detail: String::new(),
        },
        hello(TOKEN, VERSION),
        Message::Rejoin {
            migration: MIGRATION,
            token: Token::new([3; 16]),
        },
        Message::Rejoin {
            migration: MigrationId([9; 16]),
            token: TOKEN,
        },
    ];
    for message in bad {
        let mut d = prepared();
        let detail = "cut".to_owned();
        d.handle_event(T, DestinationEvent::ConnectionLost { detail });
        d.handle_event(T, DestinationEvent::Connected);
        let _ = outputs(&mut d);
        d.handle_message(T, message.clone());
        let out = outputs(&mut d);
        assert!(
            matches!(
                out[..],
                [
                    DestinationOutput::Send(Message::Abort {
                        code: AbortCode::Token,
                        ..
                    }),
                    DestinationOutput::AwaitReconnect
                ]
            ),
            "{message:?}: {out:?}"
        );
        // The true source still gets through.
        d.handle_event(T, DestinationEvent::Connected);
        d.handle_message(
            T,
            Message::Rejoin {
                migration: MIGRATION,
                token: TOKEN,
            },
        );
        d.handle_message(T, Message::Commit);
        assert_eq!(record(outputs(&mut d)), on_disk_owner());
    }
}

/// The proof that a destination's `owner` is stored, from another destination.
fn on_disk_owner() -> Stored {
    let mut d = prepared();
    d.handle_message(T, Message::Commit);
    record(outputs(&mut d))
}

#[test]
fn a_wrong_token_and_a_wrong_version_are_refused_in_words() {
    let refusal = |message| {
        let mut d = destination();
        d.handle_message(T, message);
        outputs(&mut d).into_iter().find_map(|o| match o {
            DestinationOutput::Send(Message::Abort { code, detail, .. }) => Some((code, detail)),
            _ => None,
        })
    };
    let (code, detail) = refusal(hello(TOKEN, VERSION + 1)).unwrap();
    assert_eq!(code, AbortCode::Version);
    assert!(detail.contains("version"), "{detail}");
    let (code, detail) = refusal(hello(Token::new([0; 16]), VERSION)).unwrap();
    assert_eq!(code, AbortCode::Token);
    assert!(
        !detail.contains("00000"),
        "the token is not printed: {detail}"
    );
}

#[test]
fn a_prepared_destination_waits_and_is_not_moved_by_loss_silence_or_cancel() {
    let mut d = prepared();
    let detail = "cut".to_owned();
    d.handle_event(T, DestinationEvent::ConnectionLost { detail });
    d.handle_event(T, DestinationEvent::CancelRequested);
    d.handle_timeout(100_000 * T);
    d.handle_event(
        T,
        DestinationEvent::Failed {
            detail: "late".to_owned(),
        },
    );
    assert_eq!(outputs(&mut d), [DestinationOutput::AwaitReconnect]);
    assert!(!d.is_owner());
}

#[test]
fn pages_that_come_after_all_have_come_are_refused() {
    let (mut d, _) = complete();
    d.handle_event(T, DestinationEvent::ChunksApplied(vec![ChunkId(3)]));
    let aborts = |o: &DestinationOutput| {
        matches!(
            o,
            DestinationOutput::Send(Message::Abort {
                code: AbortCode::Protocol,
                ..
            })
        )
    };
    assert!(outputs(&mut d).iter().any(aborts));
}

fn any_message() -> impl Strategy<Value = Message> {
    let abort = Message::Abort {
        code: AbortCode::Failed,
        phase: "x".to_owned(),
        detail: "y".to_owned(),
    };
    let chunks = prop::collection::vec((0u64..6).prop_map(ChunkId), 0..4);
    prop_oneof![
        Just(hello(TOKEN, VERSION)),
        Just(Message::Welcome {
            software: String::new()
        }),
        Just(Message::Offer(Box::new(shape()))),
        Just(Message::Accept),
        Just(Message::PassBegin { pass: 1, pages: 1 }),
        chunks.prop_map(|chunks| Message::Ack { chunks }),
        Just(Message::State {
            blob: vec![1],
            digest: digest(&[1])
        }),
        Just(Message::State {
            blob: vec![1],
            digest: 0
        }),
        (0u64..4).prop_map(|chunks| Message::AllSent { chunks }),
        Just(Message::Prepared(Prepared {
            restore_us: u64::MAX,
            flush_us: u64::MAX
        })),
        Just(Message::Commit),
        Just(Message::Resumed(Resumed {
            flush_us: u64::MAX,
            resume_us: u64::MAX
        })),
        Just(Message::Bye),
        Just(abort),
        Just(Message::CancelRequest),
        Just(Message::Rejoin {
            migration: MIGRATION,
            token: TOKEN
        }),
        any::<u64>().prop_map(|nonce| Message::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Message::Pong { nonce }),
    ]
}

/// What a fuzzing driver does next: a message, or event number n, or time.
#[derive(Clone, Debug)]
enum Poke {
    Message(Message),
    Event(u8),
    Time(u64),
    Store(bool),
}

/// All that a destination hears in a migration that completes.
fn right_for_destination() -> Vec<Poke> {
    let state = Message::State {
        blob: vec![1],
        digest: digest(&[1]),
    };
    vec![
        Poke::Message(hello(TOKEN, VERSION)),
        Poke::Message(Message::Offer(Box::new(shape()))),
        Poke::Event(2),
        Poke::Message(state),
        Poke::Message(Message::AllSent { chunks: 1 }),
        Poke::Event(5),
        Poke::Event(7),
        Poke::Store(true),
        Poke::Message(Message::Commit),
        Poke::Store(true),
        Poke::Event(9),
        Poke::Message(Message::Bye),
    ]
}

/// The same for a source.
fn right_for_source() -> Vec<Poke> {
    let ack = |n| {
        Poke::Message(Message::Ack {
            chunks: vec![ChunkId(n)],
        })
    };
    vec![
        Poke::Event(0),
        Poke::Message(Message::Welcome {
            software: String::new(),
        }),
        Poke::Message(Message::Accept),
        Poke::Event(3),
        ack(1),
        // What the second harvest finds fits the blackout.
        Poke::Event(3),
        Poke::Event(6),
        Poke::Event(7),
        Poke::Event(8),
        Poke::Event(3),
        ack(2),
        Poke::Message(Message::Prepared(Prepared::default())),
        Poke::Store(true),
        Poke::Message(Message::Resumed(Resumed::default())),
        Poke::Store(true),
    ]
}

/// A migration as it should be up to some point, then anything.
fn schedule(right: fn() -> Vec<Poke>) -> impl Strategy<Value = Vec<Poke>> {
    (0..=right().len(), pokes()).prop_map(move |(n, rest)| {
        let mut all = right();
        all.truncate(n);
        all.extend(rest);
        all
    })
}

fn pokes() -> impl Strategy<Value = Vec<Poke>> {
    let poke = prop_oneof![
        4 => any_message().prop_map(Poke::Message),
        4 => (0u8..12).prop_map(Poke::Event),
        1 => (0u64..20_000).prop_map(Poke::Time),
        2 => any::<bool>().prop_map(Poke::Store),
    ];
    prop::collection::vec(poke, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_destination_told_anything_in_any_order_never_runs_the_guest_without_the_record(
        pokes in schedule(right_for_destination)
    ) {
        let mut d = destination();
        let mut now = T;
        let mut waiting: Vec<Persist> = Vec::new();
        let (mut owner_stored, mut committed) = (false, false);
        for poke in pokes {
            let text = || "x".to_owned();
            match poke {
                Poke::Message(m) => {
                    committed |= m == Message::Commit;
                    d.handle_message(now, m);
                }
                Poke::Time(ms) => {
                    now += Duration::from_millis(ms);
                    d.handle_timeout(now);
                    prop_assert!(d.poll_timeout().is_none_or(|t| t > now));
                }
                Poke::Store(good) => {
                    if let Some(persist) = waiting.pop() {
                        if good {
                            owner_stored |= matches!(persist.record(), Record::Owner(_));
                            let stored = on_disk(persist);
                            d.handle_event(now, DestinationEvent::Persisted { stored, took: T });
                        } else {
                            d.handle_event(now, DestinationEvent::PersistFailed { detail: text() });
                        }
                    }
                }
                Poke::Event(n) => d.handle_event(now, match n {
                    0 => DestinationEvent::Connected,
                    1 => DestinationEvent::ConnectionLost { detail: text() },
                    2 | 3 => DestinationEvent::MachineReady,
                    4 => DestinationEvent::MachineRefused { detail: text() },
                    5 | 6 => DestinationEvent::ChunksApplied(vec![ChunkId(u64::from(n))]),
                    7 | 8 => DestinationEvent::StateRestored { took: Duration::MAX },
                    9 => DestinationEvent::Resumed { took: T },
                    10 => DestinationEvent::CancelRequested,
                    _ => DestinationEvent::Failed { detail: text() },
                }),
            }
            let mut over = 0;
            while let Some(output) = d.poll_output() {
                match output {
                    DestinationOutput::Persist(p) | DestinationOutput::PersistLater { persist: p, .. } => {
                        prop_assert!(committed || !matches!(p.record(), Record::Owner(_)));
                        waiting.push(p);
                    }
                    DestinationOutput::ResumeGuest { .. } => prop_assert!(owner_stored),
                    DestinationOutput::Finished(_) => over += 1,
                    DestinationOutput::Discard => prop_assert!(!owner_stored),
                    _ => {}
                }
            }
            prop_assert!(over <= 1);
            prop_assert!(!d.is_owner() || owner_stored);
        }
    }

    #[test]
    fn a_source_told_anything_in_any_order_never_has_two_owners(
        pokes in schedule(right_for_source)
    ) {
        let mut s = source();
        let mut now = T;
        let mut waiting: Vec<Persist> = Vec::new();
        let mut relinquished = false;
        for poke in pokes {
            let text = || "x".to_owned();
            match poke {
                Poke::Message(m) => s.handle_message(now, m),
                Poke::Time(ms) => {
                    now += Duration::from_millis(ms);
                    s.handle_timeout(now);
                    // Silence and a ping may both be due: two calls settle everything.
                    s.handle_timeout(now);
                    prop_assert!(s.poll_timeout().is_none_or(|t| t > now));
                }
                Poke::Store(good) => {
                    if let Some(persist) = waiting.pop() {
                        if good {
                            relinquished |= matches!(persist.record(), Record::Relinquished(_));
                            s.handle_event(now, SourceEvent::Persisted(on_disk(persist)));
                        } else {
                            s.handle_event(now, SourceEvent::PersistFailed { detail: text() });
                        }
                    }
                }
                Poke::Event(n) => {
                    let mut dirty = PageSet::new(&layout());
                    dirty.insert(PageRange::new(0, 3));
                    s.handle_event(now, match n {
                        0 | 1 => SourceEvent::Connected,
                        2 => SourceEvent::ConnectionLost { detail: text() },
                        3..=5 => SourceEvent::Harvested { dirty, notifications: 1 },
                        6 => SourceEvent::Paused,
                        7 => SourceEvent::IoCancelled,
                        8 => SourceEvent::StateSaved { blob: vec![1] },
                        9 => SourceEvent::Resumed,
                        10 => SourceEvent::CancelRequested,
                        _ => SourceEvent::Failed { detail: text() },
                    });
                }
            }
            while let Some(output) = s.poll_output() {
                match output {
                    SourceOutput::Persist(p) => waiting.push(p),
                    SourceOutput::ResumeGuest { .. } => prop_assert!(!relinquished),
                    SourceOutput::Send(Message::Commit) | SourceOutput::ForgetVm => prop_assert!(relinquished),
                    SourceOutput::Send(Message::Abort { .. }) => prop_assert!(!relinquished),
                    _ => {}
                }
            }
            if let Some(parts) = s.stats().blackout() {
                let t = s.stats().timeline;
                let until = t.resumed.saturating_sub(s.stats().rtt / 2).max(t.prepared);
                prop_assert_eq!(parts.iter().sum::<Duration>(), until - t.pause);
            }
        }
    }
}
