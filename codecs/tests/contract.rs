//! One contract for every codec, delta among them: what is encoded comes back, and whatever else
//! is given to a decoder fails or is decoded to every byte of the buffer, no more and no less.

use proptest::prelude::*;
use proptest::sample::Index;
use vmferry_codecs::{CodecId, CodecSpec, PAGE, decode, delta, encoder};

/// What stands before an encoding, and must stay.
const BEFORE: &[u8] = b"before";

/// Every codec, with every level that can be asked for.
fn specs() -> impl Iterator<Item = CodecSpec> {
    let zstd = (-5..=9).filter(|level| *level != 0).map(CodecSpec::Zstd);
    let others = [CodecSpec::Raw, CodecSpec::Lz4];
    others
        .into_iter()
        .chain(zstd)
        .chain((0..=5).map(CodecSpec::Brotli))
}

/// Pages and what was sent of them before.
#[derive(Clone)]
struct Case {
    pages: Vec<u8>,
    before: Vec<Option<Vec<u8>>>,
}

impl std::fmt::Debug for Case {
    /// Whole pages would tell nobody anything.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |before: &Option<Vec<u8>>| before.is_some();
        let known: Vec<_> = self.before.iter().map(known).collect();
        write!(f, "{} pages, known before: {known:?}", known.len())
    }
}

impl Case {
    /// What a destination's RAM holds.
    fn ram(&self) -> Vec<u8> {
        let unknown = vec![0x5a; PAGE];
        let held = self.before.iter().map(|b| b.as_ref().unwrap_or(&unknown));
        held.flatten().copied().collect()
    }

    /// Each encoding that there is of it.
    fn encodings(&self) -> Vec<(CodecId, Vec<u8>)> {
        let mut all = vec![(CodecId::Raw, self.pages.clone())];
        if self.pages.iter().all(|&b| b == 0) {
            all.push((CodecId::Zero, Vec::new()));
        }
        let bases: Vec<_> = self.before.iter().map(Option::as_deref).collect();
        for spec in specs() {
            let mut codec = encoder(spec).expect("an encoder for a level that is allowed");
            let mut out = BEFORE.to_vec();
            let done = codec.encode(&self.pages, &mut out).expect("an encoding");
            all.extend(appended(done, out).map(|out| (codec.id(), out)));
            let mut out = BEFORE.to_vec();
            let done = delta::Encoder::default()
                .encode(&self.pages, &bases, &mut *codec, &mut out)
                .expect("a delta");
            all.extend(appended(done, out).map(|out| (CodecId::Delta, out)));
        }
        for (codec, encoded) in &all {
            let shorter = encoded.len() < self.pages.len();
            assert!(shorter || *codec == CodecId::Raw, "{codec:?}");
        }
        all
    }
}

/// What was appended; nothing may have been, where it was not done.
fn appended(done: bool, mut out: Vec<u8>) -> Option<Vec<u8>> {
    assert!(out.starts_with(BEFORE) && (done || out == BEFORE));
    done.then(|| out.split_off(BEFORE.len()))
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let random = prop::collection::vec(any::<u8>(), PAGE);
    let repeated = prop::collection::vec(any::<u8>(), 1..64)
        .prop_map(|piece| piece.iter().copied().cycle().take(PAGE).collect());
    let sparse = (0..PAGE, any::<u8>()).prop_map(|(at, byte)| {
        let mut page = vec![0; PAGE];
        page[at] = byte;
        page
    });
    prop_oneof![random, repeated, sparse, Just(vec![0; PAGE])]
}

/// A page as it is and as it was.
fn page() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let write = (0..PAGE, prop::collection::vec(any::<u8>(), 1..16));
    let written = (content(), prop::collection::vec(write, 0..12)).prop_map(|(old, writes)| {
        let mut now = old.clone();
        for (at, bytes) in writes {
            now[at..].iter_mut().zip(bytes).for_each(|(a, b)| *a = b);
        }
        (now, Some(old))
    });
    let other = (content(), content()).prop_map(|(now, old)| (now, Some(old)));
    prop_oneof![
        3 => written,
        1 => other,
        1 => content().prop_map(|now| (now, None)),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let mixed = prop::collection::vec(page(), 1..10);
    let zero = (1usize..4).prop_map(|n| vec![(vec![0; PAGE], None); n]);
    prop_oneof![9 => mixed, 1 => zero].prop_map(|pages| {
        let (pages, before): (Vec<_>, _) = pages.into_iter().unzip();
        Case {
            pages: pages.concat(),
            before,
        }
    })
}

/// Most of what steers a decoder comes first.
#[derive(Clone, Debug)]
struct Place {
    early: bool,
    at: Index,
}

impl Place {
    fn of(&self, bound: usize) -> usize {
        self.at
            .index(if self.early { bound.min(24) } else { bound })
    }
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Cut(Index),
    Insert(Place, Vec<u8>),
    Overwrite(Place, Vec<u8>),
    Remove(Index, Index),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let bound = bytes.len() + 1;
        match self {
            Self::Flip(at, bit) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Flip(..) => (),
            Self::Cut(at) => bytes.truncate(at.index(bound)),
            Self::Insert(place, new) => {
                let at = place.of(bound);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Overwrite(place, new) => {
                let at = place.of(bound);
                bytes[at..].iter_mut().zip(new).for_each(|(a, b)| *a = *b);
            }
            Self::Remove(a, b) => {
                let (a, b) = (a.index(bound), b.index(bound));
                bytes.drain(a.min(b)..a.max(b));
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let place = || (any::<bool>(), at()).prop_map(|(early, at)| Place { early, at });
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    prop_oneof![
        (at(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        at().prop_map(Mutation::Cut),
        (place(), bytes()).prop_map(|(at, new)| Mutation::Insert(at, new)),
        (place(), bytes()).prop_map(|(at, new)| Mutation::Overwrite(at, new)),
        (at(), at()).prop_map(|(a, b)| Mutation::Remove(a, b)),
    ]
}

/// Decodes, twice, into buffers that differ in every byte: what comes out must not depend on what
/// was there. Delta's does, and its sum is right for one of them at most, unless no page has a base.
fn decodes_to_every_byte(codec: CodecId, input: &[u8], len: usize) -> Result<(), TestCaseError> {
    let (mut one, mut other) = (vec![0x00; len], vec![0xff; len]);
    let done = decode(codec, input, &mut one);
    let again = decode(codec, input, &mut other);
    if codec != CodecId::Delta {
        prop_assert_eq!(&done, &again);
    }
    if done.is_ok() && again.is_ok() {
        prop_assert!(one == other, "{:?} left bytes as they were", codec);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_encoded_decodes_to_what_it_was(case in case()) {
        for (codec, encoded) in case.encodings() {
            let mut ram = case.ram();
            prop_assert_eq!(decode(codec, &encoded, &mut ram), Ok(()));
            prop_assert!(ram == case.pages, "{:?}", codec);
        }
    }

    #[test]
    fn neither_more_nor_less_than_announced_is_accepted(
        case in case(),
        cut in any::<Index>(),
        more in prop_oneof![Just(vec![0]), prop::collection::vec(any::<u8>(), 1..5000)],
    ) {
        for (codec, encoded) in case.encodings() {
            let refuses = |input: &[u8], len: usize| decode(codec, input, &mut vec![0; len]).is_err();
            let len = case.pages.len();
            if codec != CodecId::Zero {
                for wrong in [0, 1, len - PAGE, len - 1, len + 1, len + PAGE] {
                    prop_assert!(refuses(&encoded, wrong), "{:?} in {} of {}", codec, wrong, len);
                }
                prop_assert!(refuses(&encoded[..cut.index(encoded.len())], len), "{:?} cut", codec);
            }
            prop_assert!(refuses(&[&encoded[..], &more].concat(), len), "{:?} with more", codec);
        }
    }

    #[test]
    fn damage_fails_or_is_decoded_to_every_byte(
        case in case(),
        mutations in prop::collection::vec(prop::collection::vec(mutation(), 1..4), 8),
    ) {
        for (codec, encoded) in case.encodings() {
            for mutations in &mutations {
                let mut input = encoded.clone();
                mutations.iter().for_each(|m| m.apply(&mut input));
                decodes_to_every_byte(codec, &input, case.pages.len())?;
            }
        }
    }

    #[test]
    fn garbage_fails_or_is_decoded_to_every_byte(
        codec in 0u8..6,
        input in prop::collection::vec(any::<u8>(), 0..600),
        pages in 0usize..5,
    ) {
        let codec = CodecId::try_from(codec).unwrap();
        decodes_to_every_byte(codec, &input, pages * PAGE)?;
    }
}
