//! Prose: sentences of words drawn by Zipf's law, with nothing between them that a reader would
//! call sense. A codec finds in it what it finds in real prose: the words.

use std::sync::LazyLock;

use vmferry_guest::pattern::mix;

use super::PAGE;
use super::rng::Rng;
use super::words::WORDS;

/// The words, and up to where in the sum of all weights each of them reaches.
static VOCABULARY: LazyLock<Vec<(u64, &str)>> = LazyLock::new(|| {
    let mut reach = 0;
    let words = WORDS.split_ascii_whitespace().zip(2..);
    let weighed = words.map(|(word, rank)| {
        reach += 1_000_000 / rank;
        (reach, word)
    });
    weighed.collect()
});

#[cfg(test)]
pub(super) fn vocabulary_len() -> usize {
    VOCABULARY.len()
}

/// A word, the most frequent ones most often.
pub(super) fn word(rng: &mut Rng) -> &'static str {
    drawn(rng.next())
}

fn drawn(dice: u64) -> &'static str {
    let all = VOCABULARY.last().map_or(1, |(reach, _)| *reach);
    let at = VOCABULARY.partition_point(|(reach, _)| *reach <= dice % all);
    VOCABULARY[at].1
}

/// The word that often comes after this one: what makes phrases.
fn after(word: &str) -> &'static str {
    drawn(word.bytes().fold(0, |sum, b| mix(sum ^ u64::from(b))))
}

pub(super) fn page(rng: &mut Rng) -> Vec<u8> {
    let mut out = String::with_capacity(PAGE + 256);
    while out.len() < PAGE {
        sentence(rng, &mut out);
        out.push(if rng.once_in(6) { '\n' } else { ' ' });
    }
    out.truncate(PAGE);
    out.into_bytes()
}

fn sentence(rng: &mut Rng, out: &mut String) {
    let words = 5 + rng.below(18);
    let begin = out.len();
    let mut last = "";
    for n in 0..words {
        if n > 0 {
            out.push_str(if rng.once_in(12) { ", " } else { " " });
        }
        if rng.once_in(60) {
            out.push_str(&rng.small(3000).to_string());
        } else {
            last = if rng.once_in(4) {
                after(last)
            } else {
                word(rng)
            };
            out.push_str(last);
        }
    }
    out[begin..begin + 1].make_ascii_uppercase();
    out.push(if rng.once_in(15) { '?' } else { '.' });
}
