//! Prefix and header of a chunk: refused, or within every limit and the same when encoded again.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmferry_protocol::wire::{
    ChunkHeader, HEADER_PREFIX, MAX_CHUNK_PAGES, MAX_ENCODED, MAX_HEADER,
};
use vmferry_protocol::{PageRange, RamLayout};

/// 3 GiB below the hole under 4 GiB, 1 GiB above it.
static LAYOUT: LazyLock<RamLayout> = LazyLock::new(|| {
    vec![PageRange::new(0, 3 << 18), PageRange::new(1 << 20, 1 << 18)]
        .try_into()
        .expect("a layout")
});

fuzz_target!(|input: &[u8]| {
    let Some((prefix, body)) = input.split_first_chunk::<HEADER_PREFIX>() else {
        return;
    };
    if let Ok((len, _)) = ChunkHeader::decode_prefix(*prefix) {
        assert!(len <= MAX_HEADER);
    }
    let Ok(header) = ChunkHeader::decode(body, &LAYOUT) else {
        return;
    };
    assert!(header.pages() <= MAX_CHUNK_PAGES);
    assert!(header.raw_len() <= MAX_ENCODED && header.encoded_len as usize <= MAX_ENCODED);
    let ranges = header.zero.iter().chain(&header.data);
    assert!(ranges.clone().all(|range| LAYOUT.covers(range)));
    let content = vec![0; header.encoded_len as usize];
    let again = header.encode(&content).expect("what was decoded");
    let body = &again[HEADER_PREFIX..];
    assert_eq!(ChunkHeader::decode(body, &LAYOUT).as_ref(), Ok(&header));
});
