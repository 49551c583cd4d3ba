//! The format to the byte, against a plain model of it, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::{CodecSpec, encoder};

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

fn encode(pages: &[u8], bases: &[Option<&[u8]>], rest: CodecSpec) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let mut rest = encoder(rest).unwrap();
    let done = Encoder::default()
        .encode(pages, bases, &mut *rest, &mut out)
        .unwrap();
    assert_eq!(&out[..6], b"before");
    assert_eq!(done, out.len() > 6);
    done.then(|| out.split_off(6))
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// The runs of `difference`, byte by byte.
fn model(difference: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < difference.len() {
        let zeros = difference[at..].iter().take_while(|b| **b == 0).count();
        out.extend(varint(zeros));
        at += zeros;
        let rest = &difference[at..];
        let ends = |n: &usize| rest[*n..].iter().take(4).all(|b| *b == 0);
        // Up to three zeros at the very end are a run too.
        let literal = (0..=rest.len()).find(ends).unwrap();
        if literal > 0 {
            out.extend(varint(literal));
            out.extend_from_slice(&rest[..literal]);
        }
        at += literal;
    }
    out
}

#[derive(Clone, Debug)]
struct Page {
    now: Vec<u8>,
    base: Option<Vec<u8>>,
}

impl Page {
    fn difference(&self) -> impl Iterator<Item = u8> {
        let base = self.base.iter().flatten();
        self.now.iter().zip(base).map(|(a, b)| a ^ b)
    }

    /// Whether it must have a difference in the encoding, where that is not a close thing.
    fn worth(&self) -> Option<bool> {
        let changed = self.difference().filter(|b| *b != 0).count();
        match self.base {
            None => Some(false),
            Some(_) if changed > PAGE / 2 => Some(false),
            Some(_) if changed < PAGE / 16 => Some(true),
            Some(_) => None,
        }
    }
}

/// A page that was written to in some places, or altogether.
fn page() -> impl Strategy<Value = Page> {
    let edge = prop_oneof![Just(0), Just(PAGE - 1), Just(127), Just(128)];
    let at = prop_oneof![3 => 0..PAGE, 1 => edge];
    let write = (at, prop::collection::vec(any::<u8>(), 1..24));
    let writes = prop_oneof![
        3 => prop::collection::vec(write.clone(), 0..8),
        1 => prop::collection::vec(write, 0..400),
    ];
    (any::<u64>(), writes, 0..8).prop_map(|(seed, writes, kind)| {
        let base = noise(seed, PAGE);
        let mut now = base.clone();
        for (at, bytes) in writes {
            now[at..].iter_mut().zip(bytes).for_each(|(a, b)| *a ^= b);
        }
        match kind {
            0 => Page { now, base: None },
            1 => Page {
                now: noise(!seed, PAGE),
                base: Some(base),
            },
            _ => Page {
                now,
                base: Some(base),
            },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_encoding_is_what_the_model_makes_and_decodes(pages in prop::collection::vec(page(), 1..20)) {
        let now: Vec<u8> = pages.iter().flat_map(|p| p.now.clone()).collect();
        let bases: Vec<_> = pages.iter().map(|p| p.base.as_deref()).collect();
        for rest in [CodecSpec::Raw, CodecSpec::Lz4, CodecSpec::Zstd(1)] {
            let Some(encoded) = encode(&now, &bases, rest) else {
                prop_assert!(pages.iter().all(|page| page.worth() != Some(true)));
                continue;
            };
            let parts = Parts::split(&encoded, pages.len()).unwrap();
            let mut difference = Vec::new();
            for (at, page) in pages.iter().enumerate() {
                let has = parts.has_difference(at);
                prop_assert!(page.worth().is_none_or(|worth| worth == has));
                if has {
                    difference.extend(page.difference());
                }
            }
            prop_assert_eq!(parts.runs, model(&difference));
            let mut back = Vec::new();
            for page in &pages {
                back.extend(page.base.clone().unwrap_or_else(|| vec![0xee; PAGE]));
            }
            decode(&encoded, &mut back).unwrap();
            prop_assert_eq!(&back, &now);
        }
    }
}

#[test]
fn the_format_is_fixed() {
    let base = noise(1, 3 * PAGE);
    let mut now = base.clone();
    now[300] ^= 0x11;
    now[304] ^= 0x22;
    now[309] ^= 0x33;
    now[PAGE..2 * PAGE].fill(7);
    now[2 * PAGE] ^= 0x44;
    let of = |at: usize| Some(&base[at * PAGE..][..PAGE]);
    let encoded = encode(&now, &[of(0), None, of(2)], CodecSpec::Raw).unwrap();
    let mut expected = vec![1, 17, 0, 0, 0, 0b101];
    expected.extend([0xac, 2, 5, 0x11, 0, 0, 0, 0x22]);
    expected.extend([4, 1, 0x33]);
    expected.extend([0xca, 0x1d, 1, 0x44]);
    expected.extend([0xff, 0x1f]);
    expected.extend([7; PAGE]);
    expected.extend(XxHash3_64::oneshot(&now).to_le_bytes());
    assert_eq!(encoded, expected);
}

#[test]
fn the_rest_is_encoded_by_the_codec_given_unless_that_does_not_shrink_it() {
    let (base, same, noise) = (noise(2, PAGE), vec![7; PAGE], noise(3, PAGE));
    for (rest, id) in [
        (CodecSpec::Raw, CodecId::Raw),
        (CodecSpec::Lz4, CodecId::Lz4),
        (CodecSpec::Zstd(1), CodecId::Zstd),
        (CodecSpec::Brotli(1), CodecId::Brotli),
    ] {
        let inner = |other: &[u8]| {
            let pages = [&base, other].concat();
            encode(&pages, &[Some(&base), None], rest).unwrap()[0]
        };
        assert_eq!(inner(&same), id as u8);
        assert_eq!(inner(&noise), CodecId::Raw as u8);
        let none = encode(&base, &[Some(&base)], rest).unwrap();
        assert_eq!(none[..none.len() - SUM], [1, 2, 0, 0, 0, 1, 0x80, 0x20]);
    }
}

#[test]
fn without_a_difference_worth_it_nothing_is_encoded() {
    let (page, other) = (noise(4, PAGE), noise(5, PAGE));
    assert_eq!(encode(&page, &[None], CodecSpec::Lz4), None);
    assert_eq!(encode(&page, &[Some(&other)], CodecSpec::Lz4), None);
    assert_eq!(encode(&[], &[], CodecSpec::Lz4), None);
}

#[test]
fn what_does_not_match_is_refused_before_anything_is_written() {
    struct Nested;
    impl PageCodec for Nested {
        fn id(&self) -> CodecId {
            CodecId::Delta
        }
        fn encode(&mut self, _: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
            out.push(1);
            Ok(true)
        }
    }
    let page = vec![1; PAGE];
    let both = [page.clone(), page.clone()].concat();
    let mut out = b"before".to_vec();
    let mut refused = |pages: &[u8], bases: &[Option<&[u8]>]| {
        let error = Encoder::default().encode(pages, bases, &mut Nested, &mut out);
        assert!(matches!(error, Err(CodecError::Encode { .. })));
        assert_eq!(out, b"before");
    };
    refused(&page, &[]);
    refused(&page, &[None, None]);
    refused(&page[1..], &[None]);
    refused(&page, &[Some(&page[1..])]);
    refused(&both, &[Some(&page), None]);
}

#[test]
fn damage_is_refused() {
    let frame = |inner: u8, map: u8, runs: &[u8], rest: &[u8]| {
        let len = (runs.len() as u32).to_le_bytes();
        [&[inner], &len[..], &[map], runs, rest].concat()
    };
    let refused = |input: &[u8]| {
        let mut pages = vec![0; 2 * PAGE];
        decode_frame(input, &mut pages).unwrap_err()
    };
    let page = [9; PAGE];
    let all = [0x80, 0x40];
    let half = [0x80, 0x20];
    assert_eq!(
        decode_frame(&frame(1, 3, &all, &[]), &mut [0; 2 * PAGE]),
        Ok(())
    );
    for (why, input) in [
        ("nothing", vec![]),
        ("cut in the head", vec![1, 0, 0, 0]),
        ("no bitmap", vec![1, 0, 0, 0, 0]),
        ("a page too many in the bitmap", frame(1, 7, &all, &[])),
        ("the runs leave a page out", frame(1, 3, &half, &[])),
        ("the runs go on", frame(1, 1, &all, &page)),
        ("a run after the last", frame(1, 3, &[0x80, 0x40, 0], &[])),
        ("bytes left over", frame(1, 3, &all, &[0])),
        ("a page is missing", frame(1, 1, &half, &page[1..])),
        ("a page is missing", frame(2, 1, &half, &[])),
        ("a codec and nothing for it", frame(2, 3, &all, &[])),
        ("longer than it need be", frame(1, 3, &[0x80, 0xc0, 0], &[])),
        (
            "33 bits",
            frame(1, 3, &[0x80, 0x80, 0x80, 0x80, 0x10, 0x80, 0x40], &[]),
        ),
        ("an empty literal", frame(1, 3, &[1, 0, 0xff, 0x3f], &[])),
        (
            "an empty run",
            frame(1, 3, &[1, 1, 5, 0, 1, 5, 0xfd, 0x3f], &[]),
        ),
        ("a literal that is cut", frame(1, 3, &[0, 0x80, 0x40], &[])),
        ("zero within", frame(0, 1, &half, &[])),
        ("delta within", frame(5, 1, &half, &frame(1, 1, &half, &[]))),
    ] {
        assert_eq!(refused(&input), DAMAGED, "{why}");
    }
    let mut longer = frame(1, 3, &all, &[]);
    longer[1..5].fill(0xff);
    assert_eq!(refused(&longer), DAMAGED);
    assert_eq!(
        refused(&frame(6, 3, &all, &[])),
        CodecError::Unknown(6),
        "before anything is done with it"
    );
}

#[test]
fn another_base_than_the_source_had_is_refused() {
    let (base, other) = (noise(6, PAGE), noise(7, PAGE));
    let mut now = base.clone();
    now[17] ^= 1;
    let encoded = encode(&now, &[Some(&base)], CodecSpec::Raw).unwrap();
    let mut pages = base.clone();
    assert_eq!(decode(&encoded, &mut pages), Ok(()));
    assert_eq!(pages, now);
    assert_eq!(decode(&encoded, &mut other.clone()), Err(DAMAGED));
    let cut = &encoded[..encoded.len() - SUM];
    assert_eq!(decode(cut, &mut base.clone()), Err(DAMAGED));
}
