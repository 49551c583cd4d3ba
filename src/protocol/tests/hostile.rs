//! Bytes from a hostile peer: decoders neither panic nor take more memory than their limits allow.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vmferry_protocol::ids::{ChunkId, MigrationId, Token};
use vmferry_protocol::message::{Message, RunState, VmShape};
use vmferry_protocol::wire::{
    ChunkHeader, FrameDecoder, HEADER_PREFIX, MAX_CONTROL, MAX_HEADER, MAX_SMALL, PREAMBLE,
    check_preamble, encode,
};
use vmferry_protocol::{PageRange, RamLayout};

/// Counts what this thread has asked for and not given back.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters are plain
// thread-local cells without destructors, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.get().saturating_add(layout.size());
        NOW.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on; `alloc` above is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that `f` held at once, beyond what was held before.
fn peak(f: impl FnOnce()) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    f();
    PEAK.get().saturating_sub(before)
}

fn layout() -> RamLayout {
    RamLayout::try_from(vec![PageRange::new(0, 1024)]).expect("one region")
}

fn decode_all(bytes: &[u8]) {
    let mut decoder = FrameDecoder::default();
    decoder.feed(bytes);
    while let Ok(Some(_)) = decoder.next_message() {}
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// A count as postcard writes it.
fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n > 127 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

#[test]
fn a_count_that_lies_is_not_allocated() {
    // Kinds with a list or bytes: Offer, Ack, State, Abort; each said to have 2^40 of them.
    for kind in [2u8, 5, 6, 12] {
        for n in [1 << 20, 1 << 40, u64::MAX] {
            let mut body = vec![kind];
            body.extend(varint(n));
            body.extend([1; 100]);
            let bytes = frame(&body);
            assert!(peak(|| decode_all(&bytes)) < 4 << 20, "kind {kind}, {n}");
        }
    }
}

#[test]
fn the_largest_messages_take_a_bounded_multiple_of_their_length() {
    // Pairs of zeros are page ranges in an Offer; every byte is a chunk in an Ack.
    for kind in [2u8, 5] {
        let mut body = vec![kind];
        body.extend(varint((MAX_SMALL / 2) as u64));
        body.resize(MAX_SMALL, 0);
        let bytes = frame(&body);
        assert!(peak(|| decode_all(&bytes)) <= 32 * MAX_SMALL);
    }
    let mut body = vec![6];
    body.extend(varint((MAX_CONTROL - 20) as u64));
    body.resize(MAX_CONTROL, 0);
    let bytes = frame(&body);
    assert!(peak(|| decode_all(&bytes)) <= 4 * MAX_CONTROL);
}

#[test]
fn a_header_of_the_longest_length_takes_little() {
    let mut body = vec![1, 1, 1];
    body.extend(varint(MAX_HEADER as u64 / 2));
    body.resize(MAX_HEADER, 1);
    let taken = peak(|| {
        assert!(ChunkHeader::decode(&body, &layout()).is_err());
    });
    assert!(taken < 64 * MAX_HEADER, "{taken}");
}

fn good_frames() -> Vec<Vec<u8>> {
    let shape = VmShape {
        ram: layout(),
        vcpus: 1,
        cpu_features: vec!["sse2".to_owned()],
        config: vec![1; 20],
        run_state: RunState::Running,
    };
    let messages = [
        Message::Offer(Box::new(shape)),
        Message::Ack {
            chunks: vec![ChunkId(1), ChunkId(300)],
        },
        Message::State {
            blob: vec![7; 60],
            digest: 5,
        },
        Message::CancelRequest,
    ];
    let frame = |m: &Message| encode(m).expect("small");
    messages.iter().map(frame).collect()
}

fn good_header() -> Vec<u8> {
    let header = ChunkHeader {
        chunk: ChunkId(7),
        pass: 2,
        codec: 1,
        zero: vec![PageRange::new(3, 4)],
        data: vec![PageRange::new(0, 2), PageRange::new(8, 1)],
        encoded_len: 5,
    };
    let bytes = header.encode(b"12345").expect("within limits");
    bytes[HEADER_PREFIX..].to_vec()
}

fn damage(bytes: &mut Vec<u8>, flips: &[(usize, u8)], keep: usize) {
    for (at, value) in flips {
        let n = bytes.len();
        bytes[at % n] ^= value;
    }
    bytes.truncate(keep.max(1));
}

/// The same cases in every run.
fn seeded(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0x0066_6572_7279),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(seeded(4000))]

    #[test]
    fn damaged_frames_are_refused_or_read_and_take_little(
        which in 0usize..4, flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), keep in 1usize..200
    ) {
        let mut bytes = good_frames().swap_remove(which);
        damage(&mut bytes, &flips, keep);
        prop_assert!(peak(|| decode_all(&bytes)) < 4 << 20);
    }

    #[test]
    fn damaged_headers_never_name_pages_outside_of_ram_or_beyond_limits(
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), keep in 1usize..200
    ) {
        let mut bytes = good_header();
        damage(&mut bytes, &flips, keep);
        if let Ok(header) = ChunkHeader::decode(&bytes, &layout()) {
            prop_assert!(header.pages() <= 512 && header.raw_len() <= 256 << 10);
            let all = header.zero.iter().chain(&header.data);
            prop_assert!(all.clone().all(|r| r.end() <= 1024 && r.count > 0));
            let mut frames: Vec<u64> = all.flat_map(PageRange::frames).collect();
            let n = frames.len();
            frames.sort_unstable();
            frames.dedup();
            prop_assert_eq!(frames.len(), n, "no page twice");
        }
    }

    #[test]
    fn random_bytes_take_little(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let taken = peak(|| {
            decode_all(&bytes);
            decode_all(&frame(&bytes));
            let _ = ChunkHeader::decode(&bytes, &layout());
            if let Some(preamble) = bytes.first_chunk::<PREAMBLE>() {
                let token = Token::new([1; 16]);
                assert!(check_preamble(preamble, MigrationId([1; 16]), &token).is_err());
            }
        });
        prop_assert!(taken < 4 << 20);
    }
}
