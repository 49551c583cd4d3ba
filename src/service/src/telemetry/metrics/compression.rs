//! What compression did, by codec and reason. There are as many series as codecs with their levels
//! and reasons, whatever a VM process says.

use vmferry_codecs::selector::Why;
use vmferry_codecs::{CodecId, CodecSpec};
use vmferry_engine::report::MigrationReport;
use vmferry_protocol::PAGE_SIZE;

use super::families::Families;

/// Stands for every name that none of these has.
const UNKNOWN: &str = "unknown";

impl Families {
    /// Counts what codecs did in all passes, the one too that was cut short.
    pub(super) fn count_compression(&self, report: &MigrationReport) {
        let passes = || report.passes.iter().chain(&report.pass_cut);
        for (name, did) in passes().flat_map(|pass| &pass.codecs) {
            let label = [codec(name)];
            let plain = did.pages.saturating_mul(PAGE_SIZE);
            let seconds = did.processor_ms.max(0.0) / 1e3;
            self.encoded.with_label_values(&label).inc_by(did.bytes);
            self.plain.with_label_values(&label).inc_by(plain);
            self.codec_pages.with_label_values(&label).inc_by(did.pages);
            self.codec_seconds.with_label_values(&label).inc_by(seconds);
        }
        for (why, chunks) in passes().flat_map(|pass| &pass.choices) {
            let label = [reason(why)];
            self.choices.with_label_values(&label).inc_by(*chunks);
        }
    }
}

/// A codec's name, if it is one and spelled as reports spell it.
fn codec(name: &str) -> &str {
    let spec = name.parse::<CodecSpec>();
    let chosen = spec.is_ok_and(|spec| spec.to_string() == name);
    // Differences are not chosen by name.
    match chosen || name == CodecId::Delta.name() {
        true => name,
        false => UNKNOWN,
    }
}

fn reason(name: &str) -> &'static str {
    let mut known = Why::ALL.into_iter().map(Why::name);
    known.find(|known| *known == name).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names_of_codecs_and_reasons_and_nothing_else() {
        for name in ["raw", "lz4", "delta", "zstd:-5", "zstd:9", "brotli:0"] {
            assert_eq!(codec(name), name);
        }
        for name in [
            "", "zero", "auto", "rar", "zstd:10", "zstd:+1", "zstd:01", "zstd: 1", "ZSTD:1",
            "lz4:1", "delta:1", "raw\n", "a\"b",
        ] {
            assert_eq!(codec(name), UNKNOWN, "{name:?}");
        }
        for why in Why::ALL {
            assert_eq!(reason(why.name()), why.name());
        }
        for name in ["", "Link", "because", "link "] {
            assert_eq!(reason(name), UNKNOWN, "{name:?}");
        }
    }
}
