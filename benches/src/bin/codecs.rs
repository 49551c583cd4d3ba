//! What codecs cost and save on each content: processor time of one thread, medians, on chunks as
//! migrations send them. Prints a table, and a summary for the codec selection's priors.
//!
//! `cargo run --release -p vmferry-benches --bin codecs`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use serde_json::json;
use vmferry_benches::cpu::thread_time;
use vmferry_benches::demo::median;
use vmferry_codecs::{CodecError, CodecId, CodecSpec, PageCodec, decode, encoder, is_zero};
use vmferry_tests::corpus::{Content, PAGE, pages};

const SPECS: [CodecSpec; 16] = [
    CodecSpec::Raw,
    CodecSpec::Lz4,
    CodecSpec::Zstd(-5),
    CodecSpec::Zstd(-3),
    CodecSpec::Zstd(-1),
    CodecSpec::Zstd(1),
    CodecSpec::Zstd(3),
    CodecSpec::Zstd(5),
    CodecSpec::Zstd(7),
    CodecSpec::Zstd(9),
    CodecSpec::Brotli(0),
    CodecSpec::Brotli(1),
    CodecSpec::Brotli(2),
    CodecSpec::Brotli(3),
    CodecSpec::Brotli(4),
    CodecSpec::Brotli(5),
];
/// Pages of a chunk.
const CHUNK_PAGES: usize = 64;
const MIB: usize = 1 << 20;

#[derive(Debug, Parser)]
struct Args {
    /// Passes over the data with each codec
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Data of each content, in MiB
    #[arg(long, default_value_t = 16)]
    mib: usize,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which contents
    #[arg(long, value_delimiter = ',', value_parser = content, default_values = Content::ALL.map(Content::name))]
    contents: Vec<Content>,
    /// Which codecs (default: a choice of all)
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    codecs: Vec<CodecSpec>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn content(name: &str) -> Result<Content, String> {
    let found = Content::ALL.into_iter().find(|c| c.name() == name);
    found.ok_or_else(|| format!("choose of: {}", Content::ALL.map(Content::name).join(", ")))
}

/// What a codec does to a content.
#[derive(Debug, Serialize)]
struct Row {
    content: &'static str,
    codec: String,
    /// 10⁶ bytes of plain data per second of processor time; none for raw, which encodes nothing.
    encode_mb_s: Option<f64>,
    decode_mb_s: f64,
    /// Plain ÷ encoded.
    ratio: f64,
    encode_ns_per_kib: f64,
    decode_ns_per_kib: f64,
    /// Encoded ÷ plain, in thousandths.
    per_mille: f64,
}

/// One pass: processor time of encoding and of decoding, and bytes encoded.
struct Pass {
    encode: Duration,
    decode: Duration,
    encoded: usize,
}

/// Data of a content, without zero pages: those never come to a codec.
fn data(content: Content, args: &Args) -> Vec<u8> {
    let count = (args.mib.max(1) * MIB).div_ceil(PAGE);
    // One page in seven of the mixed content is zero.
    let made = pages(content, args.seed, count + count / 3);
    let wanted = |page: &&[u8]| content == Content::Zero || !is_zero(page);
    let kept: Vec<&[u8]> = made.chunks(PAGE).filter(wanted).take(count).collect();
    kept.concat()
}

fn pass(plain: &[u8], codec: &mut dyn PageCodec, back: &mut [u8]) -> Result<Pass, CodecError> {
    let mut encode = Duration::ZERO;
    let mut frames = Vec::new();
    // One for all, as compressors have: its memory is there after the first chunk.
    let mut out = Vec::new();
    for chunk in plain.chunks(CHUNK_PAGES * PAGE) {
        out.clear();
        let start = thread_time();
        let shorter = codec.encode(chunk, &mut out)?;
        encode += thread_time() - start;
        frames.push(match shorter {
            true => (codec.id(), out.clone()),
            false => (CodecId::Raw, chunk.to_vec()),
        });
    }
    let start = thread_time();
    for ((id, frame), out) in frames.iter().zip(back.chunks_mut(CHUNK_PAGES * PAGE)) {
        decode(*id, frame, out)?;
    }
    Ok(Pass {
        encode,
        decode: thread_time() - start,
        encoded: frames.iter().map(|(_, frame)| frame.len()).sum(),
    })
}

fn row(content: Content, spec: CodecSpec, plain: &[u8], passes: &[Pass]) -> Row {
    let seconds = |of: fn(&Pass) -> Duration| {
        let all: Vec<f64> = passes.iter().map(|p| of(p).as_secs_f64()).collect();
        median(&all)
    };
    let (encode, decode) = (seconds(|p| p.encode), seconds(|p| p.decode));
    let bytes = plain.len() as f64;
    let encoded = passes.last().map_or(f64::NAN, |p| p.encoded as f64);
    let mb_s = |seconds: f64| bytes / 1e6 / seconds;
    let ns_per_kib = |seconds: f64| seconds * 1e9 / (bytes / 1024.0);
    let encodes = spec != CodecSpec::Raw;
    Row {
        content: content.name(),
        codec: spec.to_string(),
        encode_mb_s: encodes.then(|| mb_s(encode)),
        decode_mb_s: mb_s(decode),
        ratio: bytes / encoded,
        encode_ns_per_kib: if encodes { ns_per_kib(encode) } else { 0.0 },
        decode_ns_per_kib: ns_per_kib(decode),
        per_mille: encoded / bytes * 1000.0,
    }
}

fn measure(args: &Args) -> Result<Vec<Row>, CodecError> {
    let specs = match args.codecs.as_slice() {
        [] => &SPECS[..],
        some => some,
    };
    let mut rows = Vec::new();
    for &content in &args.contents {
        let plain = data(content, args);
        let mut back = vec![0; plain.len()];
        let mut codecs = Vec::new();
        for &spec in specs {
            codecs.push((spec, encoder(spec)?, Vec::new()));
        }
        for run in 0..args.runs.max(1) {
            eprintln!("{}, run {} of {}", content.name(), run + 1, args.runs);
            // In turn, so that a machine that drifts drifts for all.
            for (spec, codec, passes) in &mut codecs {
                back.fill(0xa5);
                passes.push(pass(&plain, codec.as_mut(), &mut back)?);
                if back != plain {
                    return Err(CodecError::Encode {
                        codec: codec.id().name(),
                        detail: format!("{spec} does not give back what it was given"),
                    });
                }
            }
        }
        rows.extend(
            codecs
                .iter()
                .map(|(spec, _, passes)| row(content, *spec, &plain, passes)),
        );
    }
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    println!("content   codec      encode MB/s  decode MB/s    ratio");
    for row in rows {
        let encode = row
            .encode_mb_s
            .map_or_else(|| "–".to_owned(), |mb_s| format!("{mb_s:.0}"));
        println!(
            "{:<9} {:<10} {encode:>11} {:>12.0} {:>8.2}",
            row.content, row.codec, row.decode_mb_s, row.ratio
        );
    }
}

/// Rust source: what the codec selection assumes before it has measured.
fn print_summary(rows: &[Row]) {
    println!();
    println!("// (content, codec, encode ns per KiB, decode ns per KiB, encoded ‰ of plain)");
    println!("[");
    for row in rows.iter().filter(|r| r.content != Content::Zero.name()) {
        println!(
            "    (\"{}\", \"{}\", {:.0}, {:.0}, {:.0}),",
            row.content, row.codec, row.encode_ns_per_kib, row.decode_ns_per_kib, row.per_mille
        );
    }
    println!("]");
}

fn main() -> ExitCode {
    let args = Args::parse();
    let rows = match measure(&args) {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("codecs: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{:#}", json!(rows));
    } else {
        print_table(&rows);
        print_summary(&rows);
    }
    ExitCode::SUCCESS
}
