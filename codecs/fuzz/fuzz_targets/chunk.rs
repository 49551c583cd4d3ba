//! Chunks of a page stream, one after the other into the same RAM: refused, or written where their
//! headers say and nowhere else.
//!
//! Input: for each chunk the length of its header (2 bytes), the header, and content of the length
//! that the header says. The checksum is made here, or nothing would come past it.

#![no_main]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use vmferry_engine::{RamWriter, Scratch, read_chunk};
use vmferry_memory::GuestRam;
use vmferry_protocol::wire::{ChunkHeader, checksum};
use vmferry_protocol::{PAGE_SIZE, PageRange, RamLayout};

const RAM: u64 = 2 << 20;
const ALL: PageRange = PageRange {
    start: 0,
    count: RAM / PAGE_SIZE,
};

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
    let ram = Arc::new(GuestRam::new(RAM).expect("2 MiB"));
    let writer = RamWriter::new(ram.clone(), layout());
    let (mut before, mut after) = (vec![0; RAM as usize], vec![0; RAM as usize]);
    let mut scratch = Scratch::default();
    let mut rest = input;
    while let Some((header, wire, left)) = split(rest) {
        rest = left;
        ram.copy_out(ALL, &mut before).expect("own RAM");
        let mut stream = &wire[..];
        let read = pin!(read_chunk(&mut stream, &writer, &mut scratch));
        let Poll::Ready(read) = read.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("bytes in memory do not have to be waited for");
        };
        ram.copy_out(ALL, &mut after).expect("own RAM");
        let Ok(header) = ChunkHeader::decode(header, &layout()) else {
            assert!(read.is_err() && before == after);
            continue;
        };
        let named: Vec<u64> = (header.zero.iter().chain(&header.data))
            .flat_map(PageRange::frames)
            .collect();
        for gfn in ALL.frames().filter(|gfn| !named.contains(gfn)) {
            let page = (gfn * PAGE_SIZE) as usize..((gfn + 1) * PAGE_SIZE) as usize;
            assert!(before[page.clone()] == after[page], "page {gfn} changed");
        }
    }
});
