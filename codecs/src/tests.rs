//! One contract for every codec.

use proptest::prelude::*;

use super::*;

const SPECS: [CodecSpec; 8] = [
    CodecSpec::Raw,
    CodecSpec::Lz4,
    CodecSpec::Zstd(-5),
    CodecSpec::Zstd(1),
    CodecSpec::Zstd(9),
    CodecSpec::Brotli(0),
    CodecSpec::Brotli(2),
    CodecSpec::Brotli(5),
];

fn content() -> impl Strategy<Value = Vec<u8>> {
    let random = prop::collection::vec(any::<u8>(), 4096..12288);
    let repeated = (prop::collection::vec(any::<u8>(), 1..64), 64usize..512)
        .prop_map(|(piece, n)| piece.repeat(n));
    prop_oneof![random, repeated, Just(vec![0; 8192])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_decodes_to_what_it_was(input in content()) {
        for spec in SPECS {
            let mut codec = encoder(spec).unwrap();
            let mut out = b"before".to_vec();
            if codec.encode(&input, &mut out).unwrap() {
                prop_assert!(out.len() - 6 < input.len());
                let mut back = vec![1; input.len()];
                decode(codec.id(), &out[6..], &mut back).unwrap();
                prop_assert_eq!(&back, &input);
                // Neither more nor less than announced, neither cut nor with bytes left over.
                let mut short = vec![0; input.len() - 1];
                prop_assert!(decode(codec.id(), &out[6..], &mut short).is_err());
                let mut long = vec![0; input.len() + 1];
                prop_assert!(decode(codec.id(), &out[6..], &mut long).is_err());
                prop_assert!(decode(codec.id(), &out[6..out.len() - 1], &mut back).is_err());
            } else {
                prop_assert_eq!(&out, b"before");
            }
        }
    }

    #[test]
    fn garbage_is_refused_or_decodes_but_never_panics(input in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut out = vec![0; 8192];
        for codec in [CodecId::Lz4, CodecId::Zstd, CodecId::Brotli, CodecId::Raw, CodecId::Zero] {
            let _ = decode(codec, &input, &mut out);
        }
    }

    #[test]
    fn one_bit_makes_a_page_not_zero(at in 0usize..4096, bit in 0u8..8) {
        let mut page = vec![0; 4096];
        prop_assert!(is_zero(&page));
        page[at] = 1 << bit;
        prop_assert!(!is_zero(&page));
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for spec in SPECS {
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
    for bad in [
        "",
        "rar",
        "zstd:10",
        "zstd:-6",
        "brotli:6",
        "brotli:-1",
        "lz4:1",
        "zstd:x",
    ] {
        let error = bad.parse::<CodecSpec>().unwrap_err();
        assert!(error.to_string().contains("brotli[:0..5]"));
    }
}

#[test]
fn numbers_on_the_wire_are_fixed_and_unknown_ones_refused() {
    for (id, name) in [
        (0, "zero"),
        (1, "raw"),
        (2, "lz4"),
        (3, "zstd"),
        (4, "brotli"),
        (5, "delta"),
    ] {
        assert_eq!(CodecId::try_from(id).unwrap().name(), name);
    }
    assert_eq!(CodecId::try_from(6), Err(CodecError::Unknown(6)));
}

#[test]
fn a_small_input_that_claims_to_be_huge_does_not_get_past_the_buffer() {
    let bomb = vec![0; 64 << 20];
    let mut out = Vec::new();
    encoder(CodecSpec::Zstd(1))
        .unwrap()
        .encode(&bomb, &mut out)
        .unwrap();
    assert!(out.len() < 16 << 10);
    assert!(decode(CodecId::Zstd, &out, &mut [0; 4096]).is_err());
}

#[test]
fn a_brotli_window_larger_than_a_chunk_is_refused() {
    let input = vec![3; 8192];
    let mut out = vec![0; input.len()];
    for (bits, accepted) in [
        (10, true),
        (16, true),
        (17, true),
        (18, true),
        (19, false),
        (24, false),
    ] {
        let params = brotli::enc::BrotliEncoderParams {
            quality: 5,
            lgwin: bits,
            ..Default::default()
        };
        let mut encoded = Vec::new();
        brotli::BrotliCompress(&mut &*input, &mut encoded, &params).unwrap();
        let done = decode(CodecId::Brotli, &encoded, &mut out);
        assert_eq!(done.is_ok(), accepted, "{bits}");
    }
}
