//! How far the destination is what everything waits for: not the link to it, but its threads that
//! receive and apply pages. It tells how much of the time these want a processor; this remembers.
//!
//! Fewer bytes make such a destination little quicker: it has less to receive and decrypt, and
//! more to decode.

use std::time::Duration;

use crate::CodecSpec;

/// What was told counts for 1/e after this. Short beside a migration, long beside the moments in
/// which a choice takes effect: so choices find a balance, and do not go to and fro.
const MEMORY: Duration = Duration::from_millis(400);
/// Threads that want a processor for this part of the time still keep up.
const KEEPS_UP: f64 = 0.8;
/// What the destination does for a chunk, by part of what it does for a raw one: what goes with
/// the bytes on the wire (receiving, decrypting); the rest goes with the pages. An estimate: beside
/// busy vCPUs a raw byte took it some 5 ns of processor time, by its threads' schedstat.
const OF_WIRE: f64 = 0.4;

/// Remembers what the destination told. Times are since any fixed moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiverMeter {
    behind: f64,
    at: Duration,
}

impl ReceiverMeter {
    /// So much of the time, 0 to 1, its threads want a processor at present, on average.
    pub fn told(&mut self, now: Duration, wanted: f64) {
        let behind = ((wanted - KEEPS_UP) / (1.0 - KEEPS_UP)).clamp(0.0, 1.0);
        let passed = now.saturating_sub(self.at);
        let fade = (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.behind = self.behind * fade + behind * (1.0 - fade);
        self.at = self.at.max(now);
    }

    /// How far everything waits for it, 0 to 1.
    #[must_use]
    pub const fn behind(&self) -> f64 {
        self.behind
    }
}

/// What a chunk of that ratio gives the destination to do, as a multiple of what it does raw.
pub(super) fn work(codec: CodecSpec, ratio: f64) -> f64 {
    // Decoding, over those 5 ns. Estimates: what a move with `auto` took more than a raw one, and
    // how codecs stand to each other (bench `codecs`). In doubt, too much: raw is never wrong there.
    let decoding = match codec {
        CodecSpec::Raw => 0.0,
        CodecSpec::Lz4 => 0.35,
        CodecSpec::Zstd(_) => 0.7,
        CodecSpec::Brotli(_) => 2.0,
    };
    // What repeats is decoded by copying.
    let decoding = decoding * ratio.sqrt().min(1.0);
    OF_WIRE * ratio + (1.0 - OF_WIRE) + decoding
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_follows_what_is_told_and_does_not_jump() {
        let mut meter = ReceiverMeter::default();
        assert!(meter.behind() < 1e-9);
        meter.told(MS * 100, 1.0);
        assert!(meter.behind() > 0.1 && meter.behind() < 0.3);
        for n in 2..20 {
            meter.told(MS * 100 * n, 1.0);
        }
        assert!(meter.behind() > 0.9);
        // Threads that keep up are not waited for.
        for n in 20..40 {
            meter.told(MS * 100 * n, 0.4);
        }
        assert!(meter.behind() < 0.05);
        // A clock that goes back, and nonsense, do nothing bad.
        meter.told(MS, 7.0);
        assert!((0.0..=1.0).contains(&meter.behind()));
    }

    #[test]
    fn only_what_nearly_vanishes_is_much_less_work_than_raw() {
        assert!((work(CodecSpec::Raw, 1.0) - 1.0).abs() < 1e-9);
        assert!(work(CodecSpec::Lz4, 0.02) < 0.7);
        assert!(work(CodecSpec::Lz4, 0.6) > 1.0);
        assert!(work(CodecSpec::Brotli(5), 0.3) > 1.2);
    }
}
