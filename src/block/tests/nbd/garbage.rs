//! Whatever a server sends: no panic, no event outside of what was asked for, little memory.

use proptest::prelude::*;
use vmferry_block::nbd::proto::{Command, Handshake, Request, Step, Transmission, Wish};

use crate::handshake::Script;
use crate::transmission::{Seen, feed_into};

/// Bytes that look right more often than chance has it.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just(0u64),
        1..20u64,
        Just(4096),
        any::<u64>(),
        Just(u64::MAX),
        (0..3u64, 0..5u64).prop_map(|(uses, index)| uses << 32 | index),
    ];
    let part = prop_oneof![
        Just(b"NBDMAGICIHAVEOPT\0\x03".to_vec()),
        Just(0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec()),
        Just(0x6744_6698_u32.to_be_bytes().to_vec()),
        Just(0x668e_33ef_u32.to_be_bytes().to_vec()),
        number.clone().prop_map(|n| n.to_be_bytes().to_vec()),
        number
            .clone()
            .prop_map(|n| (n as u32).to_be_bytes().to_vec()),
        number.prop_map(|n| (n as u16).to_be_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..50),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

/// Chunks with the right names and lengths that are right more often than chance has it.
fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just(0u16),
        Just(1),
        Just(2),
        Just(32769),
        Just(32770),
        any::<u16>()
    ];
    let chunk = (0..2u16, kind, 0..4u64, 0..100u64, 1..60u32, 0..5u32);
    let chunk = chunk.prop_map(|(done, kind, index, at, len, wrong)| {
        let mut payload = match kind {
            0 => Vec::new(),
            1 => [&at.to_be_bytes()[..], &vec![7; len as usize]].concat(),
            2 => [&at.to_be_bytes()[..], &len.to_be_bytes()].concat(),
            _ => b"\0\0\0\x05\0\x02xx\0\0\0\0\0\0\0\x07".to_vec(),
        };
        payload.truncate(
            payload
                .len()
                .saturating_sub(wrong.saturating_sub(3) as usize),
        );
        let magic = 0x668e_33ef_u32.to_be_bytes();
        let cookie = (1 << 32 | index).to_be_bytes();
        let size = (payload.len() as u32).to_be_bytes();
        let (done, kind) = (done.to_be_bytes(), kind.to_be_bytes());
        [&magic[..], &done, &kind, &cookie, &size, &payload].concat()
    });
    prop::collection::vec(chunk, 0..12).prop_map(|all| all.concat())
}

fn receives(structured: bool, bytes: &[u8], part: usize) -> Result<(), TestCaseError> {
    let mut session = Transmission::new(structured);
    for tag in 0..4 {
        let command = if tag == 3 {
            Command::Write
        } else {
            Command::Read
        };
        session.request(Request {
            command,
            offset: 10,
            len: 80,
            tag,
        });
    }
    let mut ended = [0; 4];
    let mut all = Vec::new();
    let _ = feed_into(&mut session, bytes, part, &mut all);
    for seen in all {
        match seen {
            Seen::Data(tag, offset, bytes) => {
                prop_assert!(tag < 3 && ended[tag as usize] == 0);
                prop_assert!(offset >= 10 && offset + bytes.len() as u64 <= 90);
            }
            Seen::Hole(tag, offset, len) => {
                prop_assert!(tag < 3 && ended[tag as usize] == 0);
                prop_assert!(offset >= 10 && offset + u64::from(len) <= 90);
            }
            Seen::Done(tag, _) => ended[tag as usize] += 1,
        }
    }
    prop_assert!(ended.iter().all(|n| *n <= 1));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn negotiating(tls: bool, right in 0..4usize, garbage in likely()) {
        let whole = Script::greeting(3).answer(8, 1, &[]).export(4096, 1).answer(7, 1, &[]).0;
        let bytes = [&whole[..whole.len() * right / 4], &garbage].concat();
        let mut handshake = Handshake::new(Wish { export: String::new(), tls });
        let mut rest = &bytes[..];
        loop {
            prop_assert!(handshake.output().len() < 200);
            match handshake.step() {
                Ok(Step::Read(len)) => {
                    prop_assert!((1..=4608).contains(&len));
                    let Some((now, then)) = rest.split_at_checked(len) else { break };
                    rest = then;
                    if handshake.receive(now).is_err() {
                        prop_assert!(handshake.step().is_err());
                        break;
                    }
                }
                Ok(Step::StartTls) => handshake.tls_started(),
                Ok(Step::Ready(_)) | Err(_) => break,
            }
        }
    }

    #[test]
    fn bytes(structured: bool, part in 1..64usize, bytes in likely()) {
        receives(structured, &bytes, part)?;
    }

    #[test]
    fn replies(part in 1..64usize, bytes in chunks()) {
        receives(true, &bytes, part)?;
    }
}
