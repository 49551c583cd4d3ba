//! What is measured of moves, and its medians.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::demo::{median, number};

/// What was measured of a cell with a codec, move by move.
#[derive(Debug, Default)]
pub struct Figures {
    total_ms: Vec<f64>,
    bytes_wire: Vec<f64>,
    brownout_pct: Vec<f64>,
    run_delay_pct: Vec<f64>,
    codecs_pct: Vec<f64>,
    bytes_by_codec: Vec<BTreeMap<String, f64>>,
}

/// Medians over the moves.
#[derive(Clone, Debug, Serialize)]
pub struct Medians {
    /// From the start to the destination's guest running.
    pub total_ms: f64,
    /// Of each move, in their order.
    pub total_ms_all: Vec<f64>,
    /// On all streams.
    pub bytes_wire: f64,
    /// Speed that the guest lost in pre-copy; none of one that does nothing.
    pub brownout_pct: Option<f64>,
    /// Time that vCPUs waited for a processor in pre-copy, in per cent of all their time.
    pub run_delay_pct: f64,
    /// Processor time that codecs took in pre-copy, in per cent of all the vCPUs' time.
    pub codecs_pct: f64,
    /// Encoded bytes of each codec's chunks.
    pub bytes_by_codec: BTreeMap<String, f64>,
}

impl Figures {
    /// Notes a move.
    ///
    /// # Errors
    /// In words, where the report does not say what is measured.
    pub fn add(&mut self, report: &Value) -> Result<(), String> {
        self.total_ms.push(number(report, "/total_ms")?);
        self.bytes_wire.push(number(report, "/bytes_wire")?);
        self.brownout_pct
            .extend(report["guest"]["brownout_pct"].as_f64());
        let precopy_ms = number(report, "/total_ms")? - number(report, "/blackout_ms")?;
        let of_vcpus =
            |ms: f64| Ok::<_, String>(ms * 100.0 / (precopy_ms * number(report, "/vcpus")?));
        let delay = of_vcpus(number(report, "/vcpu_run_delay_ms")?)?;
        self.run_delay_pct.push(delay);
        self.codecs_pct.push(of_vcpus(codecs_ms(report))?);
        let by_codec = report["bytes_by_codec"]
            .as_object()
            .ok_or("the report has no bytes_by_codec")?;
        let bytes = |(codec, bytes): (&String, &Value)| Some((codec.clone(), bytes.as_f64()?));
        self.bytes_by_codec
            .push(by_codec.iter().filter_map(bytes).collect());
        Ok(())
    }

    /// The medians; a codec that a move did not use counts as nothing there.
    #[must_use]
    pub fn medians(&self) -> Medians {
        let mut by_codec = BTreeMap::new();
        for codec in self.bytes_by_codec.iter().flat_map(BTreeMap::keys) {
            let moves = self.bytes_by_codec.iter();
            let bytes: Vec<f64> = moves
                .map(|m| m.get(codec).copied().unwrap_or(0.0))
                .collect();
            by_codec.insert(codec.clone(), median(&bytes));
        }
        let brownout = median(&self.brownout_pct);
        Medians {
            total_ms: median(&self.total_ms),
            total_ms_all: self.total_ms.clone(),
            bytes_wire: median(&self.bytes_wire),
            brownout_pct: brownout.is_finite().then_some(brownout),
            run_delay_pct: median(&self.run_delay_pct),
            codecs_pct: median(&self.codecs_pct),
            bytes_by_codec: by_codec,
        }
    }
}

/// Processor time of all codecs while the guest ran, in milliseconds.
fn codecs_ms(report: &Value) -> f64 {
    let passes = report["passes"].as_array().into_iter().flatten();
    passes
        .filter(|pass| pass["final"] == false)
        .filter_map(|pass| pass["codecs"].as_object())
        .flat_map(|codecs| codecs.values())
        .filter_map(|codec| codec["processor_ms"].as_f64())
        .sum()
}

const MIB: f64 = (1 << 20) as f64;

/// A line of a table.
impl fmt::Display for Medians {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, mib) = (self.total_ms, self.bytes_wire / MIB);
        write!(f, "{ms:>10.0} {mib:>10.1} ")?;
        match self.brownout_pct {
            Some(pct) => write!(f, "{pct:>11.2} ")?,
            None => write!(f, "{:>11} ", "–")?,
        }
        write!(f, "{:>9.2} {:>9.2} ", self.run_delay_pct, self.codecs_pct)?;
        for (codec, bytes) in self
            .bytes_by_codec
            .iter()
            .filter(|(_, bytes)| **bytes > 0.0)
        {
            write!(f, " {codec} {:.1}", bytes / MIB)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn medians_are_of_all_moves_and_say_what_each_codec_sent() {
        let mut figures = Figures::default();
        let report = |ms: f64, by_codec: Value| {
            json!({
                "total_ms": ms, "blackout_ms": ms / 2.0, "vcpus": 2, "vcpu_run_delay_ms": 0.1,
                "bytes_wire": 5 << 20, "guest": {"brownout_pct": null}, "bytes_by_codec": by_codec,
                "passes": [
                    {"final": false, "codecs": {"lz4": {"processor_ms": 0.01}, "raw": {"processor_ms": 0.01}}},
                    {"final": true, "codecs": {"lz4": {"processor_ms": 1.0}}}
                ]
            })
        };
        for (ms, by_codec) in [
            (3.0, json!({"lz4": 100})),
            (1.0, json!({"lz4": 300, "raw": 7})),
            (2.0, json!({"lz4": 200})),
        ] {
            figures.add(&report(ms, by_codec)).unwrap();
        }
        let medians = figures.medians();
        assert!((medians.total_ms - 2.0).abs() < 1e-9);
        assert_eq!(medians.brownout_pct, None);
        // A millisecond of pre-copy with two vCPUs.
        assert!((medians.run_delay_pct - 5.0).abs() < 1e-9);
        assert!((medians.codecs_pct - 1.0).abs() < 1e-9);
        assert!((medians.bytes_by_codec["lz4"] - 200.0).abs() < 1e-9);
        assert!(medians.bytes_by_codec["raw"].abs() < 1e-9);
        assert!(medians.to_string().contains("5.0"));
        assert!(figures.add(&json!({"total_ms": 1})).is_err());
    }
}
