//! The negotiation, byte by byte.

use vmferry_block::nbd::proto::{
    BlockSizes, Export, Handshake, MAX_PAYLOAD, Refusal, Step, Violation, Wish, flag,
};

/// What a server says.
#[derive(Default)]
pub(crate) struct Script(pub(crate) Vec<u8>);

impl Script {
    pub(crate) fn greeting(flags: u16) -> Self {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        Self(bytes)
    }

    pub(crate) fn answer(mut self, option: u32, kind: u32, body: &[u8]) -> Self {
        self.0.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.0.extend(option.to_be_bytes());
        self.0.extend(kind.to_be_bytes());
        self.0.extend((body.len() as u32).to_be_bytes());
        self.0.extend(body);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn export(self, bytes: u64, flags: u16) -> Self {
        let mut body = vec![0, 0];
        body.extend(bytes.to_be_bytes());
        body.extend(flags.to_be_bytes());
        self.answer(GO, 3, &body)
    }

    fn sizes(self, sizes: [u32; 3]) -> Self {
        let mut body = vec![0, 3];
        body.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
        self.answer(GO, 3, &body)
    }
}

const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const ACK: u32 = 1;
const ERROR: u32 = 1 << 31;

/// What the client has sent, and how it went: an export, a refusal, or nothing more to read.
struct Outcome {
    sent: Vec<u8>,
    went: Result<Option<Export>, Refusal>,
    tls_after: Option<usize>,
}

fn talk(tls: bool, script: Script) -> Outcome {
    let export = "dîsk".to_owned();
    let mut handshake = Handshake::new(Wish { export, tls });
    let (mut at, mut sent, mut tls_after) = (0, Vec::new(), None);
    let went = loop {
        sent.extend(handshake.output());
        match handshake.step() {
            Err(refusal) => break Err(refusal),
            Ok(Step::Ready(export)) => break Ok(Some(export)),
            Ok(Step::StartTls) => {
                tls_after = Some(sent.len());
                handshake.tls_started();
            }
            Ok(Step::Read(len)) => {
                assert!((1..=4608).contains(&len));
                let Some(bytes) = script.0.get(at..at + len) else {
                    break Ok(None);
                };
                at += len;
                if let Err(refusal) = handshake.receive(bytes) {
                    break Err(refusal);
                }
            }
        }
    };
    sent.extend(handshake.output());
    Outcome {
        sent,
        went,
        tls_after,
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go() -> Vec<u8> {
    option(GO, b"\0\0\0\x05d\xc3\xaesk\0\x01\0\x03")
}

const FLAGS: u16 = flag::HAS_FLAGS | flag::FLUSH;

#[test]
fn an_export_is_had_with_its_sizes() {
    let script = Script::greeting(3)
        .answer(STRUCTURED, ACK, &[])
        .sizes([4096, 65536, 1 << 20])
        .export(1 << 30, FLAGS)
        .answer(GO, 3, b"\0\x02a description")
        .answer(GO, ACK, &[]);
    let outcome = talk(false, script);
    let sizes = BlockSizes {
        minimum: 4096,
        preferred: 65536,
        maximum: 1 << 20,
    };
    let export = Export {
        bytes: 1 << 30,
        flags: FLAGS,
        sizes,
        structured: true,
    };
    assert_eq!(outcome.went, Ok(Some(export)));
    let sent = [&b"\0\0\0\x03"[..], &option(STRUCTURED, &[]), &go()].concat();
    assert_eq!(outcome.sent, sent);
    assert!(export.has(flag::FLUSH) && !export.has(flag::TRIM));
}

#[test]
fn servers_that_know_little_are_served() {
    let unsupported = ERROR | 1;
    let old = Script::greeting(1)
        .answer(STRUCTURED, unsupported, b"what?")
        .answer(GO, unsupported, &[])
        .raw(&(512u64 << 20).to_be_bytes())
        .raw(&FLAGS.to_be_bytes())
        .raw(&[0; 124]);
    let outcome = talk(false, old);
    let export = outcome.went.unwrap().unwrap();
    assert_eq!((export.bytes, export.structured), (512 << 20, false));
    assert_eq!(export.sizes, BlockSizes::UNSAID);
    let name = option(1, "dîsk".as_bytes());
    let asked = [&b"\0\0\0\x01"[..], &option(STRUCTURED, &[]), &go(), &name].concat();
    assert_eq!(outcome.sent, asked);
    // Without the zeros that were agreed to be left out.
    let short = Script::greeting(3)
        .answer(STRUCTURED, unsupported, &[])
        .answer(GO, unsupported, &[])
        .raw(&[0; 7])
        .raw(&[1, 0, 1]);
    assert_eq!(talk(false, short).went.unwrap().unwrap().bytes, 1);
}

#[test]
fn tls_begins_before_anything_is_told() {
    let script = Script::greeting(3)
        .answer(STARTTLS, ACK, &[])
        .answer(STRUCTURED, ACK, &[])
        .export(4096, FLAGS)
        .answer(GO, ACK, &[]);
    let outcome = talk(true, script);
    assert!(matches!(outcome.went, Ok(Some(_))));
    let open = [&b"\0\0\0\x03"[..], &option(STARTTLS, &[])].concat();
    assert_eq!(outcome.tls_after, Some(open.len()));
    assert!(outcome.sent.starts_with(&open));
}

#[test]
fn refusals_say_what_to_do() {
    let begun = || Script::greeting(3).answer(STRUCTURED, ACK, &[]);
    let cases: [(bool, Script, &[&str]); 6] = [
        (
            true,
            Script::greeting(3).answer(STARTTLS, ERROR | 2, b"none here"),
            &["no TLS", "none here", "nbd instead of nbds"],
        ),
        (
            false,
            Script::greeting(3).answer(STRUCTURED, ERROR | 5, &[]),
            &["wants TLS", "nbds"],
        ),
        (false, begun().answer(GO, ERROR | 5, &[]), &["wants TLS"]),
        (
            false,
            begun()
                .answer(GO, ERROR | 6, b"no \x1b[31msuch thing")
                .answer(LIST, 2, b"\0\0\0\x01afirst of all")
                .answer(LIST, 2, b"\0\0\0\x02bb")
                .answer(LIST, ACK, &[]),
            &["no  [31msuch thing", "it has: 'a', 'bb'"],
        ),
        (
            false,
            begun()
                .answer(GO, ERROR | 6, &[])
                .answer(LIST, ERROR | 2, &[]),
            &["no export of that name", "configuration"],
        ),
        (
            false,
            begun().answer(GO, ERROR | 7, b"going"),
            &["refuses", "error 7", "going"],
        ),
    ];
    for (tls, script, words) in cases {
        let outcome = talk(tls, script);
        let why = outcome.went.unwrap_err().to_string();
        for word in words {
            assert!(why.contains(word), "{why}");
        }
        assert!(outcome.sent.ends_with(&option(2, &[])), "no goodbye: {why}");
    }
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let begun = || Script::greeting(3).answer(STRUCTURED, ACK, &[]);
    let export = || begun().export(4096, FLAGS);
    let long = vec![b'x'; 5000];
    let scripts = [
        Script(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        Script(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0".to_vec()),
        Script(b"NBDMAGICwhatever\0\x03".to_vec()),
        // Not the fixed style.
        Script::greeting(2),
        // Answers to another option, of no kind, that is not one.
        Script::greeting(3).answer(GO, ACK, &[]),
        Script::greeting(3).answer(STRUCTURED, 77, &[]),
        Script::greeting(3).raw(&[7; 20]),
        Script::greeting(3).answer(STRUCTURED, ACK, b"and more"),
        // Too long.
        begun().answer(GO, ERROR | 6, &long),
        begun()
            .raw(&[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7])
            .raw(&[0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]),
        // Informations that are not.
        begun().answer(GO, 3, b"\0"),
        begun().answer(GO, 3, b"\0\0short"),
        begun().answer(GO, 3, &[0; 13]),
        begun().answer(GO, ACK, &[]),
        begun().answer(GO, 2, b"\0\0\0\x01a"),
        export().sizes([0, 4096, 1 << 20]),
        export().sizes([3, 4096, 1 << 20]),
        export().sizes([1 << 17, 1 << 17, 1 << 20]),
        export().sizes([4096, 512, 1 << 20]),
        export().sizes([512, 5000, 1 << 20]),
        export().sizes([512, 4096, 256]),
        begun().export(1 << 63, FLAGS).answer(GO, ACK, &[]),
        // Names that are longer than what carries them.
        begun()
            .answer(GO, ERROR | 6, &[])
            .answer(LIST, 2, b"\0\0\0\x09a"),
        begun()
            .answer(GO, ERROR | 6, &[])
            .answer(LIST, 2, b"\xff\xff\xff\xffa"),
    ];
    for (i, script) in scripts.into_iter().enumerate() {
        let went = talk(false, script).went;
        assert!(matches!(went, Err(Refusal::Violation(_))), "{i}: {went:?}");
    }
}

#[test]
fn answers_do_not_go_on_for_ever() {
    let mut script = Script::greeting(3).answer(STRUCTURED, ACK, &[]);
    for _ in 0..5000 {
        script = script.export(4096, FLAGS);
    }
    let without_end = Violation("it answers without end");
    assert_eq!(talk(false, script).went, Err(without_end.into()));
}

#[test]
fn names_of_exports_are_bounded() {
    let mut script = Script::greeting(3)
        .answer(STRUCTURED, ACK, &[])
        .answer(GO, ERROR | 6, &[]);
    for _ in 0..1000 {
        let name = [&[0, 0, 0x0f, 0xff][..], &[b'n'; 4095]].concat();
        script = script.answer(LIST, 2, &name);
    }
    let went = talk(false, script.answer(LIST, ACK, &[])).went;
    let why = went.unwrap_err().to_string();
    assert!(why.len() < 4000, "{}", why.len());
}

#[test]
fn our_own_limit_bounds_the_servers() {
    let script = Script::greeting(3)
        .answer(STRUCTURED, ACK, &[])
        .sizes([1, 4096, u32::MAX])
        .export(4096, FLAGS)
        .answer(GO, ACK, &[]);
    let export = talk(false, script).went.unwrap().unwrap();
    assert_eq!(export.sizes.maximum, MAX_PAYLOAD);
}

#[test]
fn an_export_can_be_replaced_by_one_that_does_as_much() {
    let before = Export {
        bytes: 4096,
        flags: FLAGS | flag::TRIM | flag::CAN_MULTI_CONN,
        sizes: BlockSizes::UNSAID,
        structured: true,
    };
    let less = |export: Export, words: &str| {
        let why = export.replaces(&before).unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    let larger = Export {
        bytes: 8192,
        structured: false,
        ..before
    };
    assert_eq!(larger.replaces(&before), Ok(()));
    let without = |flag: u16| Export {
        flags: before.flags & !flag,
        ..before
    };
    less(
        Export {
            bytes: 512,
            ..before
        },
        "512 bytes",
    );
    less(without(flag::TRIM), "trim");
    less(without(flag::FLUSH), "flush");
    less(without(flag::CAN_MULTI_CONN), "several connections");
    let flags = before.flags | flag::READ_ONLY;
    less(Export { flags, ..before }, "read-only");
    let sizes = BlockSizes {
        minimum: 512,
        ..before.sizes
    };
    less(Export { sizes, ..before }, "512 bytes and more");
}
