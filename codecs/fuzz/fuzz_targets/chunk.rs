//! Chunks of a page stream, one after the other into the same RAM: refused, or written where their
//! headers say and nowhere else.
//!
//! Input: for each chunk the length of its header (2 bytes), the header, and content of the length
//! that the header says. The checksum is made here, or nothing would come past it.

#![no_main]

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use vmferry_engine::{RamWriter, Scratch, read_chunk};
use vmferry_memory::GuestRam;
use vmferry_protocol::wire::{ChunkHeader, checksum};
use vmferry_protocol::{PAGE_SIZE, PageRange, RamLayout};

/// As much as a chunk's content: the beginning of 2 MiB, so that most inputs are quick.
const ALL: PageRange = PageRange {
    start: 0,
    count: 64,
};
/// Chunks that an input is read for.
const CHUNKS: usize = 8;

static RAM: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| Arc::new(GuestRam::new(2 << 20).expect("2 MiB")));

/// The first chunk of `input`, what follows it, and its bytes on the wire.
fn split(input: &[u8]) -> Option<(&[u8], Vec<u8>, &[u8])> {
    let (len, rest) = input.split_first_chunk::<2>()?;
    let (header, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let layout = layout();
    let wanted = ChunkHeader::decode(header, &layout).map_or(0, |h| h.encoded_len as usize);
    let (content, rest) = rest.split_at(wanted.min(rest.len()));
    let mut wire = (header.len() as u32).to_le_bytes().to_vec();
    wire.extend(checksum(header, content).to_le_bytes());
    wire.extend(header);
    wire.extend(content);
    Some((header, wire, rest))
}

fn layout() -> RamLayout {
    vec![ALL].try_into().expect("a layout")
}

fuzz_target!(|input: &[u8]| {
    let (mut before, mut after) = (vec![0; ALL.bytes() as usize], vec![0; ALL.bytes() as usize]);
    RAM.copy_in(ALL, &before).expect("own RAM");
    let writer = RamWriter::new(RAM.clone(), layout());
    let mut scratch = Scratch::default();
    let mut rest = input;
    for _ in 0..CHUNKS {
        let Some((header, wire, left)) = split(rest) else {
            return;
        };
        rest = left;
        let mut stream = &wire[..];
        let read = pin!(read_chunk(&mut stream, &writer, &mut scratch));
        let Poll::Ready(read) = read.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("bytes in memory do not have to be waited for");
        };
        RAM.copy_out(ALL, &mut after).expect("own RAM");
        let Ok(header) = ChunkHeader::decode(header, &layout()) else {
            assert!(read.is_err() && before == after);
            continue;
        };
        let named = |gfn: u64| {
            let mut ranges = header.zero.iter().chain(&header.data);
            ranges.any(|range| range.frames().contains(&gfn))
        };
        for gfn in ALL.frames().filter(|gfn| !named(*gfn)) {
            let page = (gfn * PAGE_SIZE) as usize..((gfn + 1) * PAGE_SIZE) as usize;
            assert!(before[page.clone()] == after[page], "page {gfn} changed");
        }
        std::mem::swap(&mut before, &mut after);
    }
});
