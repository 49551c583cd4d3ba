//! The cores spoken to directly: orders that a well-behaved peer would not choose, and strangers.

mod common;

use common::{MIGRATION, T, TOKEN, destination, hello, on_disk, shape, source};
use vmferry_protocol::destination::{
    Destination, DestinationEvent, DestinationOutcome, DestinationOutput,
};
use vmferry_protocol::ids::{ChunkId, MigrationId, Token};
use vmferry_protocol::message::{AbortCode, Load, Message};
use vmferry_protocol::ownership::{Record, Stored};
use vmferry_protocol::source::{SourceEvent, SourceOutput};
use vmferry_protocol::version::{Features, Speaks};
use vmferry_protocol::wire::digest;

fn outputs(destination: &mut Destination) -> Vec<DestinationOutput> {
    std::iter::from_fn(|| destination.poll_output()).collect()
}

/// What it wants to have on disk.
fn written(destination: &mut Destination) -> Vec<Record> {
    let records = outputs(destination).into_iter().map(|output| match output {
        DestinationOutput::Persist(persist) => persist.records().to_vec(),
        _ => Vec::new(),
    });
    records.flatten().collect()
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
    d.handle_message(T, hello(TOKEN, Speaks::CURRENT));
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
    d.handle_event(
        T,
        DestinationEvent::StateRestored {
            took: T,
            jobs: Vec::new(),
        },
    );
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
        hello(TOKEN, Speaks::CURRENT),
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
    let (oldest, newest) = (Speaks::CURRENT.newest + 1, u16::MAX);
    let future = Speaks {
        oldest,
        newest,
        ..Speaks::CURRENT
    };
    let refusal = |message| {
        let mut d = destination();
        d.handle_message(T, message);
        outputs(&mut d).into_iter().find_map(|o| match o {
            DestinationOutput::Send(Message::Abort { code, detail, .. }) => Some((code, detail)),
            _ => None,
        })
    };
    let (code, detail) = refusal(hello(TOKEN, future)).unwrap();
    assert_eq!(code, AbortCode::Version);
    assert!(detail.contains("version"), "{detail}");
    let (code, detail) = refusal(hello(Token::new([0; 16]), Speaks::CURRENT)).unwrap();
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
fn a_destination_that_gives_up_for_silence_says_so_first() {
    let mut d = destination();
    d.handle_message(T, hello(TOKEN, Speaks::CURRENT));
    d.handle_message(T, Message::Offer(Box::new(shape())));
    d.handle_event(T, DestinationEvent::MachineReady);
    outputs(&mut d);
    d.handle_timeout(10 * T);
    assert_eq!(outputs(&mut d), [], "not yet");
    d.handle_timeout(11 * T);
    let said = outputs(&mut d);
    let DestinationOutput::Send(Message::Abort { code, detail, .. }) = &said[0] else {
        panic!("{said:?}");
    };
    assert_eq!(*code, AbortCode::Failed);
    assert!(detail.contains("silent"), "{detail}");
    assert!(matches!(
        said.last(),
        Some(DestinationOutput::Finished(DestinationOutcome::Aborted { detail: why })) if why == detail
    ));
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

#[test]
fn an_operator_decides_of_a_whole_guest_without_a_source_and_of_nothing_else() {
    // Neither before all has come, nor beside the source.
    let mut early = destination();
    let mut beside = prepared();
    for d in [&mut early, &mut beside] {
        assert!(d.taken_by_operator().is_err());
        assert!(d.discarded_by_operator().is_err());
        assert_eq!(outputs(d), []);
    }
    let alone = || {
        let mut d = prepared();
        let detail = "cut".to_owned();
        d.handle_event(T, DestinationEvent::ConnectionLost { detail });
        let _ = outputs(&mut d);
        d
    };
    let mut taken = alone();
    taken.taken_by_operator().unwrap();
    assert_eq!(written(&mut taken), [Record::Owner(MIGRATION)]);
    // Said twice it is the same, and it cannot be taken back.
    taken.taken_by_operator().unwrap();
    assert!(taken.discarded_by_operator().is_err());
    assert_eq!(outputs(&mut taken), []);
    let mut discarded = alone();
    discarded.discarded_by_operator().unwrap();
    assert!(discarded.taken_by_operator().is_err());
    assert_eq!(written(&mut discarded), [Record::Discarded(MIGRATION)]);
}

/// While pages come, and to a source that knows of it.
#[test]
fn a_destination_tells_how_much_it_has_to_do_where_that_is_agreed() {
    let load = Load { wanted: 700 };
    let current = Speaks::CURRENT;
    let older = Speaks {
        can: current.needs,
        ..current
    };
    assert!(!Features::LOAD.missing_in(older.can).is_empty());
    for (speaks, tells) in [(current, true), (older, false)] {
        let mut d = destination();
        d.handle_event(T, DestinationEvent::Load(load));
        d.handle_message(T, hello(TOKEN, speaks));
        d.handle_message(T, Message::Offer(Box::new(shape())));
        assert!(!outputs(&mut d).contains(&DestinationOutput::Send(Message::Load(load))));
        d.handle_event(T, DestinationEvent::MachineReady);
        let _ = outputs(&mut d);
        d.handle_event(T, DestinationEvent::Load(load));
        let said = outputs(&mut d);
        assert_eq!(
            said.contains(&DestinationOutput::Send(Message::Load(load))),
            tells
        );
        assert_eq!(said.len(), usize::from(tells));
    }
}

#[test]
fn a_source_passes_on_how_much_the_destination_has_to_do() {
    let load = Load { wanted: 700 };
    let mut s = source();
    s.handle_event(T, SourceEvent::Connected);
    while s.poll_output().is_some() {}
    s.handle_message(T, Message::Load(load));
    assert_eq!(s.poll_output(), Some(SourceOutput::PeerLoad(load)));
    assert_eq!(s.poll_output(), None);
}
