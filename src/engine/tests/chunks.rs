//! From RAM to a frame and back, and frames that are not what they should be.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use vmferry_codecs::{CodecChoice, CodecSpec};
use vmferry_engine::compression::Compression;
use vmferry_engine::{
    ApplyError, Buffers, Encoded, Encoder, Frame, RamWriter, Scratch, read_chunk,
};
use vmferry_memory::GuestRam;
use vmferry_protocol::ids::ChunkId;
use vmferry_protocol::pending::Chunk;
use vmferry_protocol::wire::ChunkHeader;
use vmferry_protocol::{PAGE_SIZE, PageRange, RamLayout};
use vmferry_tracker::{DirtyTracker, HarvestStats, TrackerError, TrackerKind};

const PAGE: usize = PAGE_SIZE as usize;
const RAM: u64 = 8 << 20;

/// Tracks nothing.
#[derive(Debug)]
struct Untracked;

impl DirtyTracker for Untracked {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WpAsync
    }
    fn start(&self) -> Result<(), TrackerError> {
        Ok(())
    }
    fn harvest(&self, _: &mut dyn FnMut(PageRange)) -> Result<HarvestStats, TrackerError> {
        Ok(HarvestStats::default())
    }
    fn protect(&self, _: PageRange) -> Result<(), TrackerError> {
        Ok(())
    }
    fn stop(&self) {}
}

fn layout(ram: &GuestRam) -> RamLayout {
    let regions: Vec<PageRange> = ram.regions().iter().map(|r| r.range).collect();
    RamLayout::try_from(regions).unwrap()
}

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(RAM).unwrap())
}

fn writer(ram: &Arc<GuestRam>) -> RamWriter {
    RamWriter::new(ram.clone(), layout(ram))
}

fn page_of(ram: &GuestRam, gfn: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    ram.copy_out(PageRange::new(gfn, 1), &mut page).unwrap();
    page
}

fn bytes(frame: &Frame) -> Vec<u8> {
    [&frame.head[..], &frame.content[..]].concat()
}

fn chunk(id: u64, ranges: &[(u64, u64)]) -> Chunk {
    Chunk {
        id: ChunkId(id),
        pass: 1,
        ranges: ranges.iter().map(|&(s, n)| PageRange::new(s, n)).collect(),
    }
}

fn encoder(ram: &Arc<GuestRam>, codec: CodecSpec) -> Encoder {
    encoder_by(ram, CodecChoice::Fixed(codec))
}

fn encoder_by(ram: &Arc<GuestRam>, codec: CodecChoice) -> Encoder {
    let compression = Compression::new(codec, Arc::default(), 1, 1 << 20, 1);
    Encoder::new(
        ram.clone(),
        Arc::new(Untracked),
        Arc::new(compression),
        Buffers::default(),
        None,
    )
}

fn frame_of(encoder: &mut Encoder, chunk: &Chunk) -> Frame {
    encoder.protect(chunk).unwrap();
    match encoder.encode(chunk, false).unwrap() {
        Encoded::Frame(frame) => frame,
        Encoded::Unchanged(_) => panic!("nothing is compared here"),
    }
}

#[tokio::test]
async fn pages_arrive_as_they_were_with_every_codec() {
    let source = ram();
    for gfn in (0..40).filter(|gfn| gfn % 3 != 0) {
        let page: Vec<u8> = (0..PAGE).map(|i| (i as u64 * gfn / 7) as u8).collect();
        source.copy_in(PageRange::new(gfn, 1), &page).unwrap();
    }
    for codec in [
        CodecSpec::Raw,
        CodecSpec::Lz4,
        CodecSpec::Zstd(1),
        CodecSpec::Brotli(1),
    ] {
        let there = ram();
        let apply = writer(&there);
        let frame = frame_of(&mut encoder(&source, codec), &chunk(7, &[(0, 30), (35, 5)]));
        let sent = bytes(&frame);
        assert_eq!(frame.stats.bytes_wire, sent.len() as u64);
        assert_eq!(frame.stats.pages_data + frame.stats.pages_zero, 35);
        let twice = [sent.clone(), sent].concat();
        let (mut stream, mut scratch) = (&twice[..], Scratch::default());
        for _ in 0..2 {
            let id = read_chunk(&mut stream, &apply, &mut scratch).await.unwrap();
            assert_eq!(id, Some(ChunkId(7)));
        }
        assert_eq!(
            read_chunk(&mut stream, &apply, &mut scratch).await.unwrap(),
            None
        );
        for gfn in 0..40 {
            let expected = if (30..35).contains(&gfn) {
                vec![0; PAGE]
            } else {
                page_of(&source, gfn)
            };
            assert!(page_of(&there, gfn) == expected, "{codec}: page {gfn}");
        }
    }
}

#[tokio::test]
async fn zero_pages_clear_what_was_written_and_leave_the_rest_untouched() {
    let (source, there) = (ram(), ram());
    let apply = writer(&there);
    let mut encode = encoder(&source, CodecSpec::Lz4);
    let mut scratch = Scratch::default();
    source.copy_in(PageRange::new(3, 1), &[5; PAGE]).unwrap();
    let first = bytes(&frame_of(&mut encode, &chunk(1, &[(3, 1)])));
    read_chunk(&mut &first[..], &apply, &mut scratch)
        .await
        .unwrap();
    assert_eq!(page_of(&there, 3), [5; PAGE]);
    source.copy_in(PageRange::new(3, 1), &[0; PAGE]).unwrap();
    let frame = frame_of(&mut encode, &chunk(2, &[(0, 64)]));
    assert_eq!((frame.stats.pages_zero, frame.content.len()), (64, 0));
    let second = bytes(&frame);
    read_chunk(&mut &second[..], &apply, &mut scratch)
        .await
        .unwrap();
    assert_eq!(page_of(&there, 3), [0; PAGE]);
    // Zero pages far from anything written bring no memory into being.
    let far = bytes(&frame_of(&mut encode, &chunk(3, &[(1024, 64)])));
    read_chunk(&mut &far[..], &apply, &mut scratch)
        .await
        .unwrap();
    let mut made = Vec::new();
    there.populated(|run| made.push(run)).unwrap();
    let near = PageRange::new(0, 512);
    assert!(made.iter().all(|run| near.covers(run)), "{made:?}");
}

#[tokio::test]
async fn what_is_cut_damaged_or_outside_of_ram_is_refused() {
    let (source, there) = (ram(), ram());
    source.copy_in(PageRange::new(1, 1), &[9; PAGE]).unwrap();
    let apply = writer(&there);
    let mut lz4 = encoder(&source, CodecSpec::Lz4);
    let good = bytes(&frame_of(&mut lz4, &chunk(1, &[(0, 8)])));
    let mut scratch = Scratch::default();
    for len in 1..good.len() {
        let cut = read_chunk(&mut &good[..len], &apply, &mut scratch).await;
        assert!(matches!(cut, Err(ApplyError::Cut(_))), "{len}: {cut:?}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        // A length that is too long may also run into the end.
        assert!(
            read_chunk(&mut &bad[..], &apply, &mut scratch)
                .await
                .is_err(),
            "byte {at}"
        );
    }
    assert_eq!(page_of(&there, 1), [0; PAGE], "something of it was written");
    let header = |codec, start, encoded_len| ChunkHeader {
        chunk: ChunkId(1),
        pass: 1,
        codec,
        zero: Vec::new(),
        data: vec![PageRange::new(start, 1)],
        encoded_len,
    };
    // Outside of RAM; no such codec; raw content that is too short; content that does not decode.
    let outside = RAM / PAGE_SIZE;
    for (codec, start, len) in [(1, outside, PAGE), (99, 0, 10), (1, 0, 10), (2, 0, 10)] {
        let content = vec![0xee; len];
        let head = header(codec, start, len as u32).encode(&content).unwrap();
        let frame = [head, content].concat();
        let refused = read_chunk(&mut &frame[..], &apply, &mut scratch).await;
        assert!(refused.is_err(), "codec {codec}, page {start}");
    }
    // A codec that nobody knows, before anything of its content has come: what waited for that
    // would find the stream cut.
    let head = header(99, 0, 10).encode(&[0xee; 10]).unwrap();
    let refused = read_chunk(&mut &head[..], &apply, &mut scratch).await;
    assert!(matches!(refused, Err(ApplyError::Codec(_))), "{refused:?}");
}

/// Words that change in pages that were sent before: their difference travels, and arrives.
#[tokio::test]
async fn pages_that_are_sent_again_arrive_as_differences() {
    let (source, there) = (ram(), ram());
    let apply = writer(&there);
    let mut encode = encoder_by(&source, CodecChoice::Auto);
    let mut random = 1u64;
    for gfn in 0..20 {
        let page: Vec<u8> = std::iter::repeat_with(|| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 56) as u8
        })
        .take(PAGE)
        .collect();
        source.copy_in(PageRange::new(gfn, 1), &page).unwrap();
    }
    let mut codecs = Vec::new();
    for pass in 1..=5u32 {
        let chunk = Chunk {
            pass,
            ..chunk(u64::from(pass), &[(0, 20)])
        };
        let frame = frame_of(&mut encode, &chunk);
        codecs.push(frame.stats.codec);
        let sent = bytes(&frame);
        read_chunk(&mut &sent[..], &apply, &mut Scratch::default())
            .await
            .unwrap();
        for gfn in 0..20 {
            assert!(page_of(&there, gfn) == page_of(&source, gfn), "page {gfn}");
            // Every page gets a word; one becomes zero in between, and then has content again.
            let mut page = page_of(&source, gfn);
            page[8 * gfn as usize..][..8].copy_from_slice(&u64::from(pass).to_le_bytes());
            if gfn == 7 && pass % 2 == 0 {
                page.fill(0);
            }
            source.copy_in(PageRange::new(gfn, 1), &page).unwrap();
        }
    }
    assert_eq!(codecs, [1, 1, 5, 5, 5], "raw, raw, and then differences");
}
