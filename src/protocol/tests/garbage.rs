//! The cores told anything, in any order, from any point of a migration on: they never panic, and
//! never let the guest run in two places.

mod common;

use std::time::Duration;

use common::{MIGRATION, T, TOKEN, destination, hello, layout, on_disk, shape, source};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vmferry_protocol::destination::{DestinationEvent, DestinationOutcome, DestinationOutput};
use vmferry_protocol::ids::ChunkId;
use vmferry_protocol::message::{AbortCode, Load, Message, Prepared, Resumed};
use vmferry_protocol::ownership::{Persist, Record};
use vmferry_protocol::source::{ChunkStats, Outcome, SourceEvent, SourceOutput};
use vmferry_protocol::storage::{
    Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement,
};
use vmferry_protocol::version::{Agreed, Features, Speaks};
use vmferry_protocol::wire::digest;
use vmferry_protocol::{PageRange, PageSet};

const AGREED: Agreed = Agreed {
    version: 1,
    features: Features::ALL,
};

fn any_message() -> impl Strategy<Value = Message> {
    let abort = Message::Abort {
        code: AbortCode::Failed,
        phase: "x".to_owned(),
        detail: "y".to_owned(),
    };
    let chunks = prop::collection::vec((0u64..6).prop_map(ChunkId), 0..4);
    prop_oneof![
        Just(hello(TOKEN, Speaks::CURRENT)),
        Just(Message::Welcome {
            software: String::new(),
            agreed: AGREED
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
        Just(Message::Settled {
            settlements: settlements()
        }),
        Just(Message::SettledAck { jobs: keys() }),
        Just(Message::Bye),
        Just(abort),
        Just(Message::CancelRequest),
        Just(Message::Rejoin {
            migration: MIGRATION,
            token: TOKEN
        }),
        any::<u64>().prop_map(|nonce| Message::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Message::Pong { nonce }),
        any::<u16>().prop_map(|wanted| Message::Load(Load { wanted })),
    ]
}

const fn key(job: u64) -> JobKey {
    let job = JobId(job);
    JobKey { disk: 0, job }
}

/// A read that was cancelled, and a write that was not.
fn jobs() -> Vec<JobRecord> {
    let job = |job, kind, fate| JobRecord {
        key: key(job),
        kind,
        extent: Extent::new(0, 4096),
        fate,
    };
    vec![
        job(0, JobKind::Read, Fate::Cancelled),
        job(1, JobKind::Write, Fate::Unsettled),
    ]
}

fn keys() -> Vec<JobKey> {
    vec![key(0), key(1)]
}

/// Of the write, and of something that was never handed over.
fn settlements() -> Vec<Settlement> {
    let settled = |job| Settlement {
        key: key(job),
        end: JobEnd::Done,
    };
    vec![settled(1), settled(7)]
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
        Poke::Message(hello(TOKEN, Speaks::CURRENT)),
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
        Poke::Event(11),
        Poke::Message(Message::Bye),
        Poke::Store(true),
    ]
}

/// The same for a source.
fn right_for_source() -> Vec<Poke> {
    let message = Poke::Message;
    let ack = |n| {
        let chunks = vec![ChunkId(n)];
        message(Message::Ack { chunks })
    };
    let software = String::new();
    vec![
        Poke::Event(0),
        message(Message::Welcome {
            software,
            agreed: AGREED,
        }),
        message(Message::Accept),
        Poke::Event(3),
        Poke::Event(12),
        Poke::Time(1),
        ack(1),
        // What the second harvest finds fits the blackout.
        Poke::Event(3),
        Poke::Event(6),
        Poke::Event(7),
        Poke::Event(8),
        Poke::Event(3),
        ack(2),
        message(Message::Prepared(Prepared::default())),
        Poke::Store(true),
        message(Message::Resumed(Resumed::default())),
        Poke::Event(11),
        message(Message::SettledAck { jobs: keys() }),
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
        4 => (0u8..13).prop_map(Poke::Event),
        1 => (0u64..20_000).prop_map(Poke::Time),
        2 => any::<bool>().prop_map(Poke::Store),
    ];
    prop::collection::vec(poke, 0..120)
}

fn chunk_sent() -> ChunkStats {
    ChunkStats {
        chunk: ChunkId(1),
        bytes_wire: 100_000,
        bytes_encoded: 99_000,
        codec: 1,
        pages_data: 3,
        pages_zero: 0,
        pages_unchanged: 0,
        read: Duration::ZERO,
        read_ran: Duration::ZERO,
    }
}

/// Pokes a destination and checks it after each poke; how it ended, if it did.
fn poke_destination(pokes: Vec<Poke>) -> Result<Option<DestinationOutcome>, TestCaseError> {
    let mut d = destination();
    let mut now = T;
    let mut ended = None;
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
                        owner_stored |= matches!(persist.records().last(), Some(Record::Owner(_)));
                        let stored = on_disk(persist);
                        d.handle_event(now, DestinationEvent::Persisted { stored, took: T });
                    } else {
                        d.handle_event(now, DestinationEvent::PersistFailed { detail: text() });
                    }
                }
            }
            Poke::Event(n) => d.handle_event(
                now,
                match n {
                    0 => DestinationEvent::Connected,
                    1 => DestinationEvent::ConnectionLost { detail: text() },
                    2 | 3 => DestinationEvent::MachineReady,
                    4 => DestinationEvent::MachineRefused { detail: text() },
                    5 | 6 => DestinationEvent::ChunksApplied(vec![ChunkId(u64::from(n))]),
                    7 | 8 => DestinationEvent::StateRestored {
                        took: Duration::MAX,
                        jobs: jobs(),
                    },
                    9 => DestinationEvent::Resumed { took: T },
                    11 => DestinationEvent::JobsCompleted(keys()),
                    10 => DestinationEvent::CancelRequested,
                    _ => DestinationEvent::Failed { detail: text() },
                },
            ),
        }
        let mut over = 0;
        while let Some(output) = d.poll_output() {
            match output {
                DestinationOutput::Persist(p)
                | DestinationOutput::PersistLater { persist: p, .. } => {
                    prop_assert!(
                        committed || !matches!(p.records().last(), Some(Record::Owner(_)))
                    );
                    waiting.push(p);
                }
                DestinationOutput::ResumeGuest { .. } => prop_assert!(owner_stored),
                DestinationOutput::Finished(outcome) => {
                    over += 1;
                    ended = Some(outcome);
                }
                DestinationOutput::Discard => prop_assert!(!owner_stored),
                _ => {}
            }
        }
        prop_assert!(over <= 1);
        prop_assert!(!d.is_owner() || owner_stored);
    }
    Ok(ended)
}

/// The same for a source.
fn poke_source(pokes: Vec<Poke>) -> Result<Option<Outcome>, TestCaseError> {
    let mut s = source();
    let mut now = T;
    let mut ended = None;
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
                        relinquished |=
                            matches!(persist.records().last(), Some(Record::Relinquished(_)));
                        s.handle_event(now, SourceEvent::Persisted(on_disk(persist)));
                    } else {
                        s.handle_event(now, SourceEvent::PersistFailed { detail: text() });
                    }
                }
            }
            Poke::Event(n) => {
                let mut dirty = PageSet::new(&layout());
                dirty.insert(PageRange::new(0, 3));
                s.handle_event(
                    now,
                    match n {
                        0 | 1 => SourceEvent::Connected,
                        2 => SourceEvent::ConnectionLost { detail: text() },
                        3..=5 => SourceEvent::Harvested {
                            dirty,
                            notifications: 1,
                            stall: Duration::ZERO,
                            group_pages: 1 << (n % 14),
                        },
                        6 => SourceEvent::Paused,
                        7 => SourceEvent::IoCancelled { jobs: jobs() },
                        11 => SourceEvent::IoSettled(settlements()),
                        8 => SourceEvent::StateSaved { blob: vec![1] },
                        9 => SourceEvent::Resumed,
                        10 => SourceEvent::CancelRequested,
                        12 => SourceEvent::ChunkSent(chunk_sent()),
                        13 => SourceEvent::ResumeFailed { detail: text() },
                        _ => SourceEvent::Failed { detail: text() },
                    },
                );
            }
        }
        while let Some(output) = s.poll_output() {
            match output {
                SourceOutput::Persist(p) => waiting.push(p),
                SourceOutput::Finished(outcome) => ended = Some(outcome),
                SourceOutput::ResumeGuest { .. } => prop_assert!(!relinquished),
                SourceOutput::Send(Message::Commit) | SourceOutput::ForgetVm => {
                    prop_assert!(relinquished)
                }
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
    Ok(ended)
}

#[test]
fn the_right_order_completes() {
    let destination = poke_destination(right_for_destination()).expect("checks");
    assert_eq!(destination, Some(DestinationOutcome::Completed));
    let source = poke_source(right_for_source()).expect("checks");
    assert_eq!(source, Some(Outcome::Completed));
}

/// The same cases in every run.
fn seeded(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0x0066_6572_7279),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(seeded(2000))]

    #[test]
    fn a_destination_told_anything_never_runs_the_guest_without_the_record(
        pokes in schedule(right_for_destination)
    ) {
        poke_destination(pokes)?;
    }

    #[test]
    fn a_source_told_anything_never_resumes_what_it_gave_away(pokes in schedule(right_for_source)) {
        poke_source(pokes)?;
    }
}
