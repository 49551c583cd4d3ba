//! Names, numbers, limits. What all codecs promise is in `tests/contract.rs`.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

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
    for spec in selector::CANDIDATES.into_iter().chain([CodecSpec::Raw]) {
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
