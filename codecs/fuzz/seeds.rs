//! Writes what the fuzzer starts from: valid encodings of every codec, and chunk headers.
//!
//! `seeds FOLDER` makes `FOLDER/decode`, `FOLDER/header` and `FOLDER/chunk`.

use std::error::Error;
use std::fs;
use std::path::Path;

use vmferry_codecs::{CodecId, CodecSpec, PAGE, delta, encoder};
use vmferry_protocol::PageRange;
use vmferry_protocol::ids::ChunkId;
use vmferry_protocol::wire::{ChunkHeader, HEADER_PREFIX};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("seeds FOLDER")?;
    let folder = Path::new(&folder);
    for target in ["decode", "header", "chunk"] {
        fs::create_dir_all(folder.join(target))?;
    }
    let mut written = 0;
    let mut write = |target: &str, bytes: &[u8]| {
        written += 1;
        fs::write(folder.join(target).join(format!("seed-{written}")), bytes)
    };
    for pages in [2, 3, 9] {
        for content in contents(pages) {
            for (codec, encoded) in encodings(&content)? {
                let head = [codec as u8, pages as u8 - 1];
                write("decode", &[&head[..], &encoded].concat())?;
                if encoded.is_empty() {
                    continue;
                }
                let (zero, data) = ([(30, 20)], [(3, 1), (8, pages as u64 - 1)]);
                let first = framed(CodecId::Raw, &[], &data, &earlier(&content))?;
                let then = framed(codec, &zero, &data, &encoded)?;
                write("chunk", &[first, then].concat())?;
            }
        }
    }
    for (zero, data) in [
        (vec![], vec![(0, 2)]),
        (vec![(3, 4), (9, 500)], vec![(1 << 20, 8)]),
    ] {
        let header = ChunkHeader {
            chunk: ChunkId(7),
            pass: 2,
            codec: 5,
            zero: ranges(&zero),
            data: ranges(&data),
            encoded_len: 100,
        };
        write("header", &header.encode(&[0; 100])?)?;
    }
    Ok(())
}

fn ranges(list: &[(u64, u64)]) -> Vec<PageRange> {
    let range = |&(start, count): &(u64, u64)| PageRange::new(start, count);
    list.iter().map(range).collect()
}

/// A chunk as the target `chunk` takes it: its header's length, the header, the content.
fn framed(
    codec: CodecId,
    zero: &[(u64, u64)],
    data: &[(u64, u64)],
    content: &[u8],
) -> Result<Vec<u8>, Box<dyn Error>> {
    let header = ChunkHeader {
        chunk: ChunkId(1),
        pass: 1,
        codec: codec as u8,
        zero: ranges(zero),
        data: ranges(data),
        encoded_len: u32::try_from(content.len())?,
    };
    let frame = header.encode(content)?;
    let header = &frame[HEADER_PREFIX..];
    let len = u16::try_from(header.len())?.to_le_bytes();
    Ok([&len, header, content].concat())
}

/// Zeros, words that repeat, and every sixteenth word another.
fn contents(pages: usize) -> [Vec<u8>; 3] {
    let words = pages * PAGE / 8;
    let mixed = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (n % 3 * 16);
    let of = |word: &dyn Fn(u64) -> u64| {
        (0..words as u64)
            .flat_map(|n| word(n).to_le_bytes())
            .collect()
    };
    [
        vec![0; pages * PAGE],
        of(&|n| n % 7),
        of(&|n| if n % 16 == 0 { mixed(n) } else { 3 }),
    ]
}

/// An earlier version of them: what differences are to.
fn earlier(pages: &[u8]) -> Vec<u8> {
    let mut before = pages.to_vec();
    before.iter_mut().step_by(1000).for_each(|b| *b ^= 0x21);
    before
}

type Encodings = Vec<(CodecId, Vec<u8>)>;

fn encodings(pages: &[u8]) -> Result<Encodings, Box<dyn Error>> {
    let mut all = vec![(CodecId::Zero, Vec::new()), (CodecId::Raw, pages.to_vec())];
    let before = earlier(pages);
    let bases = before.chunks(PAGE).enumerate();
    let bases: Vec<_> = bases
        .map(|(at, base)| (at % 3 != 1).then_some(base))
        .collect();
    for spec in [
        CodecSpec::Raw,
        CodecSpec::Lz4,
        CodecSpec::Zstd(1),
        CodecSpec::Brotli(2),
    ] {
        let mut codec = encoder(spec)?;
        let mut out = Vec::new();
        if codec.encode(pages, &mut out)? {
            all.push((codec.id(), out));
        }
        let mut out = Vec::new();
        if delta::Encoder::default().encode(pages, &bases, &mut *codec, &mut out)? {
            all.push((CodecId::Delta, out));
        }
    }
    Ok(all)
}
