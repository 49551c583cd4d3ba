//! What was chosen, why, and what it came to: by pass and codec, and some choices one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_codecs::selector::{Choice, Conditions, Why};
use vmferry_codecs::{CodecId, Content};

/// Choices of a pass that are kept one by one; even.
const SAMPLES: usize = 16;

/// What a codec did in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) chunks: u64,
    pub(crate) plain: u64,
    pub(crate) encoded: u64,
    pub(crate) processor: Duration,
}

/// Where compressors' time went: of one for a chunk, or of all for a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Waited for pages: nothing was to be encoded.
    pub(crate) for_pages: Duration,
    /// Waited until the link had room.
    pub(crate) for_link: Duration,
    /// Waited until processors had.
    pub(crate) for_processors: Duration,
    /// Protected, read, compared and encoded pages, or wanted to.
    pub(crate) worked: Duration,
}

impl std::ops::AddAssign for Turn {
    fn add_assign(&mut self, more: Self) {
        self.for_pages += more.for_pages;
        self.for_link += more.for_link;
        self.for_processors += more.for_processors;
        self.worked += more.worked;
    }
}

/// A chunk that was encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) content: Content,
    pub(crate) choice: Choice,
    /// What the choice rests on; none where there was no choice.
    pub(crate) at: Option<Conditions>,
    /// What it was sent as.
    pub(crate) codec: CodecId,
    pub(crate) plain: usize,
    pub(crate) encoded: usize,
    pub(crate) processor: Duration,
}

impl Sample {
    /// The codec in full; difference and raw by themselves, whatever was chosen.
    pub(crate) fn codec_name(&self) -> String {
        match self.codec {
            CodecId::Raw | CodecId::Delta => self.codec.name().to_owned(),
            _ => self.choice.codec.to_string(),
        }
    }
}

/// Some of many, spread evenly over all that came: every so many, and every other of those
/// whenever they become too many.
#[derive(Clone, Debug)]
struct Spread<T> {
    kept: Vec<T>,
    every: u64,
    came: u64,
}

impl<T> Default for Spread<T> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            every: 1,
            came: 0,
        }
    }
}

impl<T> Spread<T> {
    fn offer(&mut self, one: T) {
        let n = self.came;
        self.came += 1;
        if self.kept.len() == SAMPLES && n.is_multiple_of(self.every) {
            let mut place = 0;
            self.kept.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.every *= 2;
        }
        if n.is_multiple_of(self.every) {
            self.kept.push(one);
        }
    }
}

/// Counted over all compressors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    by_codec: BTreeMap<(u32, String), Used>,
    by_reason: BTreeMap<(u32, Why), u64>,
    choices: BTreeMap<u32, Spread<Sample>>,
    turns: BTreeMap<u32, Turn>,
}

impl Tally {
    /// Counts where the time of a compressor went.
    pub(super) fn turn(&mut self, pass: u32, turn: Turn) {
        *self.turns.entry(pass).or_default() += turn;
    }

    /// Where the time of all compressors went in a pass.
    pub(crate) fn turns(&self, pass: u32) -> Turn {
        self.turns.get(&pass).copied().unwrap_or_default()
    }

    /// Counts a chunk of a pass.
    pub(super) fn count(&mut self, pass: u32, chunk: Sample) {
        let of_codec = self.by_codec.entry((pass, chunk.codec_name()));
        let used = of_codec.or_default();
        used.chunks += 1;
        used.plain += chunk.plain as u64;
        used.encoded += chunk.encoded as u64;
        used.processor += chunk.processor;
        let of_reason = self.by_reason.entry((pass, chunk.choice.why));
        *of_reason.or_default() += 1;
        if chunk.at.is_some() {
            self.choices.entry(pass).or_default().offer(chunk);
        }
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

    /// Choices of a pass, one by one: at most [`SAMPLES`], from all of it.
    pub(crate) fn choices(&self, pass: u32) -> &[Sample] {
        self.choices.get(&pass).map_or(&[], |spread| &spread.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_from_all_that_came_however_many() {
        for came in [0, 1, 15, 16, 17, 100, 1000, 4096] {
            let mut spread = Spread::default();
            (0..came).for_each(|n| spread.offer(n));
            let all: Vec<u64> = (0..came).step_by(spread.every as usize).collect();
            assert_eq!(spread.kept, all);
            assert!(all.len() <= SAMPLES && (all.len() as u64 >= came.min(SAMPLES as u64 / 2)));
        }
    }
}
