//! Requests and replies, byte by byte.

use vmferry_block::nbd::proto::{Command, Event, Request, Transmission, Violation};

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Data(u32, u64, Vec<u8>),
    Hole(u32, u64, u32),
    Done(u32, Option<i32>),
}

fn read(tag: u32, offset: u64, len: u32) -> Request<u32> {
    Request {
        command: Command::Read,
        offset,
        len,
        tag,
    }
}

fn cookie(bytes: &[u8; 28]) -> [u8; 8] {
    *bytes[8..].first_chunk().unwrap()
}

/// A simple reply.
fn simple(cookie: [u8; 8], error: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x6744_6698_u32.to_be_bytes();
    [&magic[..], &error.to_be_bytes(), &cookie, data].concat()
}

/// A chunk.
fn chunk(cookie: [u8; 8], flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let magic = 0x668e_33ef_u32.to_be_bytes();
    let (flags, kind) = (flags.to_be_bytes(), kind.to_be_bytes());
    let len = (payload.len() as u32).to_be_bytes();
    [&magic[..], &flags, &kind, &cookie, &len, payload].concat()
}

fn data(cookie: [u8; 8], flags: u16, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(
        cookie,
        flags,
        1,
        &[&offset.to_be_bytes()[..], bytes].concat(),
    )
}

fn hole(cookie: [u8; 8], flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    chunk(cookie, flags, 2, &payload)
}

fn error(cookie: [u8; 8], flags: u16, number: u32, words: &[u8]) -> Vec<u8> {
    let len = (words.len() as u16).to_be_bytes();
    let payload = [&number.to_be_bytes()[..], &len, words].concat();
    chunk(cookie, flags, 1 << 15 | 1, &payload)
}

/// Feeds `bytes` in parts of `part`; data that follows on data is put together.
pub(crate) fn feed(
    session: &mut Transmission<u32>,
    bytes: &[u8],
    part: usize,
) -> Result<Vec<Seen>, Violation> {
    let mut seen = Vec::new();
    feed_into(session, bytes, part, &mut seen)?;
    Ok(seen)
}

/// As [`feed`], with what was seen before the end.
pub(crate) fn feed_into(
    session: &mut Transmission<u32>,
    bytes: &[u8],
    part: usize,
    seen: &mut Vec<Seen>,
) -> Result<(), Violation> {
    for part in bytes.chunks(part) {
        let mut rest = part;
        loop {
            let (used, event) = session.receive(rest)?;
            rest = &rest[used..];
            match event {
                None => break,
                Some(Event::Data { tag, offset, bytes }) => match seen.last_mut() {
                    Some(Seen::Data(t, o, all)) if *t == tag && *o + all.len() as u64 == offset => {
                        all.extend(bytes);
                    }
                    _ => seen.push(Seen::Data(tag, offset, bytes.to_vec())),
                },
                Some(Event::Hole { tag, offset, len }) => seen.push(Seen::Hole(tag, offset, len)),
                Some(Event::Done { tag, error }) => seen.push(Seen::Done(tag, error)),
            }
        }
        assert!(rest.is_empty());
    }
    Ok(())
}

#[test]
fn requests_are_written_as_the_protocol_has_them() {
    let mut session = Transmission::new(false);
    let commands = [
        (Command::Read, [0, 0, 0, 0]),
        (Command::Write, [0, 0, 0, 1]),
        (Command::Flush, [0, 0, 0, 3]),
        (Command::Trim, [0, 0, 0, 4]),
        (Command::WriteZeroes { no_hole: false }, [0, 0, 0, 6]),
        (Command::WriteZeroes { no_hole: true }, [0, 2, 0, 6]),
    ];
    let mut names = std::collections::HashSet::new();
    for (tag, (command, coded)) in commands.into_iter().enumerate() {
        let request = Request {
            command,
            offset: 0x0102_0304_0506_0708,
            len: 0x0a0b_0c0d,
            tag,
        };
        let (_, bytes) = session.request(request);
        assert_eq!(bytes[..4], [0x25, 0x60, 0x95, 0x13]);
        assert_eq!(bytes[4..8], coded);
        assert!(names.insert(cookie(&bytes)));
        assert_eq!(bytes[16..], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13]);
    }
    assert_eq!(session.in_flight(), 6);
    assert_eq!(Transmission::<u32>::disconnect()[4..8], [0, 0, 0, 2]);
}

#[test]
fn simple_replies_come_in_any_order_and_any_parts() {
    for part in [1, 3, 16, 1000] {
        let mut session = Transmission::new(false);
        let first = cookie(&session.request(read(1, 4096, 20)).1);
        let flush = Request {
            command: Command::Flush,
            ..read(2, 0, 0)
        };
        let second = cookie(&session.request(flush).1);
        let third = cookie(&session.request(read(3, 0, 512)).1);
        let bytes: Vec<u8> = (0..20).collect();
        let replies = [
            simple(third, 5, &[]),
            simple(second, 0, &[]),
            simple(first, 0, &bytes),
        ];
        let seen = feed(&mut session, &replies.concat(), part).unwrap();
        let all = [
            Seen::Done(3, Some(libc::EIO)),
            Seen::Done(2, None),
            Seen::Data(1, 4096, bytes),
            Seen::Done(1, None),
        ];
        assert_eq!((seen, session.in_flight()), (all.to_vec(), 0));
    }
}

#[test]
fn chunks_come_in_any_order_and_any_parts() {
    for part in [1, 7, 20, 1000] {
        let mut session = Transmission::new(true);
        let a = cookie(&session.request(read(1, 1000, 30)).1);
        let b = cookie(&session.request(read(2, 0, 10)).1);
        let c = cookie(&session.request(read(3, 0, 10)).1);
        let replies = [
            data(a, 0, 1020, &[1; 10]),
            hole(b, 1, 0, 10),
            error(c, 0, 28, b"full"),
            data(c, 0, 0, &[3; 5]),
            hole(a, 0, 1000, 5),
            chunk(c, 1, 0, &[]),
            data(a, 1, 1005, &[2; 15]),
        ];
        let seen = feed(&mut session, &replies.concat(), part).unwrap();
        let all = [
            Seen::Data(1, 1020, vec![1; 10]),
            Seen::Hole(2, 0, 10),
            Seen::Done(2, None),
            Seen::Data(3, 0, vec![3; 5]),
            Seen::Hole(1, 1000, 5),
            Seen::Done(3, Some(libc::ENOSPC)),
            Seen::Data(1, 1005, vec![2; 15]),
            Seen::Done(1, None),
        ];
        assert_eq!((seen, session.in_flight()), (all.to_vec(), 0));
    }
}

#[test]
fn errors_are_those_of_the_system() {
    let mut session = Transmission::new(false);
    let numbers = [
        (1, libc::EPERM),
        (5, libc::EIO),
        (12, libc::ENOMEM),
        (22, libc::EINVAL),
        (28, libc::ENOSPC),
        (75, libc::EOVERFLOW),
        (95, libc::EOPNOTSUPP),
        (108, libc::ESHUTDOWN),
        (99999, libc::EINVAL),
    ];
    for (number, errno) in numbers {
        let name = cookie(&session.request(read(0, 0, 512)).1);
        let seen = feed(&mut session, &simple(name, number, &[]), 100);
        assert_eq!(seen, Ok(vec![Seen::Done(0, Some(errno))]));
    }
}

/// Every reply to a request for 100 bytes at 1000 that must end the session.
#[test]
fn what_is_not_the_protocol_ends_the_session() {
    type Reply = fn([u8; 8]) -> Vec<u8>;
    let structured: [(&str, Reply); 24] = [
        ("no reply", |_| vec![7; 16]),
        ("another name", |mut c| {
            c[7] ^= 1;
            data(c, 1, 1000, &[0; 100])
        }),
        ("an older name", |mut c| {
            c[3] ^= 1;
            data(c, 1, 1000, &[0; 100])
        }),
        ("before", |c| data(c, 1, 999, &[0; 100])),
        ("behind", |c| data(c, 1, 1001, &[0; 100])),
        ("at the end of all", |c| data(c, 1, u64::MAX, &[0; 100])),
        ("too much", |c| data(c, 1, 1000, &[0; 101])),
        ("far too much", |c| {
            let mut bytes = data(c, 1, 1000, &[]);
            bytes[16..20].fill(0xff);
            bytes
        }),
        ("no data", |c| data(c, 1, 1000, &[])),
        ("less than an offset", |c| chunk(c, 1, 1, &[0; 7])),
        ("not all", |c| data(c, 1, 1000, &[0; 99])),
        ("nothing", |c| chunk(c, 1, 0, &[])),
        ("twice", |c| {
            [data(c, 0, 1000, &[0; 60]), data(c, 1, 1059, &[0; 41])].concat()
        }),
        ("hole on data", |c| {
            [data(c, 0, 1000, &[0; 60]), hole(c, 1, 1000, 100)].concat()
        }),
        ("an empty hole", |c| hole(c, 1, 1000, 0)),
        ("an endless hole", |c| hole(c, 1, 1000, u32::MAX)),
        ("a short hole", |c| chunk(c, 1, 2, &[0; 11])),
        ("an empty chunk with something", |c| chunk(c, 1, 0, &[0])),
        ("an empty chunk that is not last", |c| chunk(c, 0, 0, &[])),
        ("flags", |c| data(c, 3, 1000, &[0; 100])),
        ("block status", |c| chunk(c, 1, 5, &[0; 12])),
        ("a short error", |c| chunk(c, 1, 1 << 15 | 1, &[0; 5])),
        ("an error that is none", |c| error(c, 1, 0, b"fine")),
        ("no chunks", |c| simple(c, 0, &[0; 100])),
    ];
    for (what, reply) in structured {
        let mut session = Transmission::new(true);
        let (index, _) = session.request(read(9, 0, 512));
        session.withdraw(index);
        let name = cookie(&session.request(read(0, 1000, 100)).1);
        let seen = feed(&mut session, &reply(name), 11);
        assert!(seen.is_err(), "{what}: {seen:?}");
    }
    let twice = |name| [simple(name, 0, &[0; 100]), simple(name, 0, &[0; 100])].concat();
    let mut session = Transmission::new(false);
    let name = cookie(&session.request(read(0, 1000, 100)).1);
    assert!(feed(&mut session, &twice(name), 50).is_err());
    let mut session = Transmission::new(false);
    let name = cookie(&session.request(read(0, 1000, 100)).1);
    let chunks = data(name, 1, 1000, &[0; 100]);
    assert!(
        feed(&mut session, &chunks, 50).is_err(),
        "chunks not agreed to"
    );
}

#[test]
fn errors_with_words_and_places() {
    let place = |c, number: u32, words: &[u8], at: u64| {
        let len = (words.len() as u16).to_be_bytes();
        let payload = [&number.to_be_bytes()[..], &len, words, &at.to_be_bytes()].concat();
        chunk(c, 1, 1 << 15 | 2, &payload)
    };
    let reply = |make: &dyn Fn([u8; 8]) -> Vec<u8>| {
        let mut session = Transmission::new(true);
        let name = cookie(&session.request(read(0, 1000, 100)).1);
        feed(&mut session, &make(name), 5)
    };
    let failed = |errno| Ok(vec![Seen::Done(0, Some(errno))]);
    assert_eq!(reply(&|c| place(c, 5, b"bad", 1099)), failed(libc::EIO));
    assert!(reply(&|c| place(c, 5, b"bad", 1100)).is_err());
    assert!(reply(&|c| place(c, 5, b"bad", 999)).is_err());
    assert_eq!(
        reply(&|c| error(c, 1, 1, &[b'x'; 4096])),
        failed(libc::EPERM)
    );
    assert!(reply(&|c| error(c, 1, 1, &[b'x'; 5000])).is_err());
    // Words that are longer than their chunk.
    let lying = |c| chunk(c, 1, 1 << 15 | 1, b"\0\0\0\x05\0\xffshort");
    assert!(reply(&lying).is_err());
    // A kind of error that is not known is an error still.
    let strange = |c| chunk(c, 1, 1 << 15 | 77, b"\0\0\0\x1c\0\0and more");
    assert_eq!(reply(&strange), failed(libc::ENOSPC));
    // As some servers have it: a simple reply that says no.
    assert_eq!(reply(&|c| simple(c, 12, &[])), failed(libc::ENOMEM));
}

#[test]
fn what_is_taken_back_is_not_answered() {
    let mut session = Transmission::new(false);
    let (index, bytes) = session.request(read(4, 0, 512));
    assert_eq!(session.withdraw(index), Some(read(4, 0, 512)));
    assert_eq!((session.withdraw(index), session.in_flight()), (None, 0));
    assert!(feed(&mut session, &simple(cookie(&bytes), 0, &[]), 100).is_err());
    for tag in 0..4 {
        session.request(read(tag, 0, 512));
    }
    let mut odd: Vec<u32> = session
        .take(|r| r.tag % 2 == 1)
        .iter()
        .map(|r| r.tag)
        .collect();
    odd.sort_unstable();
    assert_eq!((odd, session.in_flight()), (vec![1, 3], 2));
}
