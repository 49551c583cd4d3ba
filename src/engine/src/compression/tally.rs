//! What was chosen, why, and what it came to: by pass and codec.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_codecs::selector::Why;

/// What a codec did in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) chunks: u64,
    pub(crate) plain: u64,
    pub(crate) encoded: u64,
    pub(crate) processor: Duration,
}

/// Counted over all compressors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    by_codec: BTreeMap<(u32, String), Used>,
    by_reason: BTreeMap<(u32, Why), u64>,
}

impl Tally {
    /// Counts a chunk that became `encoded` of `plain` bytes with a codec in a pass.
    pub(super) fn count(
        &mut self,
        (pass, codec): (u32, String),
        why: Why,
        (plain, encoded): (usize, usize),
        processor: Duration,
    ) {
        let used = self.by_codec.entry((pass, codec)).or_default();
        used.chunks += 1;
        used.plain += plain as u64;
        used.encoded += encoded as u64;
        used.processor += processor;
        *self.by_reason.entry((pass, why)).or_default() += 1;
    }

    /// What each codec did in a pass.
    pub(crate) fn codecs(&self, pass: u32) -> impl Iterator<Item = (&str, Used)> {
        let all = self.by_codec.iter().filter(move |((p, _), _)| *p == pass);
        all.map(|((_, codec), used)| (codec.as_str(), *used))
    }

    /// How many chunks were encoded as they were for each reason.
    pub(crate) fn reasons(&self, pass: u32) -> impl Iterator<Item = (&'static str, u64)> {
        let all = self.by_reason.iter().filter(move |((p, _), _)| *p == pass);
        all.map(|((_, why), chunks)| (why.name(), *chunks))
    }
}
