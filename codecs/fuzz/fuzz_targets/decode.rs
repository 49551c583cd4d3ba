//! Decoders of pages: they fail, or write every byte of the buffer.
//!
//! Input: number of the codec, number of pages less one (6 bits), encoded content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_codecs::{CodecId, PAGE, decode};

fuzz_target!(|input: &[u8]| {
    let &[codec, pages, ref content @ ..] = input else {
        return;
    };
    let Ok(codec) = CodecId::try_from(codec) else {
        return;
    };
    let len = (usize::from(pages % 64) + 1) * PAGE;
    // Twice, into buffers that differ in every byte: what was there does not show in what comes
    // out. A difference does depend on it, but its sum is right for one of them at most, unless no
    // page has a base.
    let (mut one, mut other) = (vec![0x00; len], vec![0xff; len]);
    let done = decode(codec, content, &mut one);
    let again = decode(codec, content, &mut other);
    if codec != CodecId::Delta {
        assert_eq!(done, again);
    }
    if done.is_ok() && again.is_ok() {
        assert!(one == other);
    }
});
