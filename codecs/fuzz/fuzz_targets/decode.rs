//! Decoders of pages: they fail, or write every byte of the buffer.
//!
//! Input: number of the codec, number of pages less one (6 bits), encoded content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_codecs::{CodecId, decode, delta};

fuzz_target!(|input: &[u8]| {
    let &[codec, pages, ref content @ ..] = input else {
        return;
    };
    let Ok(codec) = CodecId::try_from(codec) else {
        return;
    };
    let len = (usize::from(pages % 64) + 1) * delta::PAGE;
    // Twice, into buffers that differ in every byte: what was there does not show in what comes
    // out, but as the base of a difference, where it shows in every byte of the page.
    let (mut one, mut other) = (vec![0x00; len], vec![0xff; len]);
    let done = decode(codec, content, &mut one);
    assert_eq!(done, decode(codec, content, &mut other));
    if done.is_err() {
        return;
    }
    for (one, other) in one.chunks(delta::PAGE).zip(other.chunks(delta::PAGE)) {
        let based = codec == CodecId::Delta && one[0] != other[0];
        let expected = if based { 0xff } else { 0 };
        assert!(one.iter().zip(other).all(|(a, b)| a ^ b == expected));
    }
});
