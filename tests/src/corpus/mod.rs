//! Pages as real guests have them, made from a seed: for codecs to be tested and measured on.
//!
//! A page is a pure function of content, seed and its number; those of [`Content::Code`] are of
//! the program that runs, so they differ from build to build.

mod code;
mod database;
mod json;
mod rng;
mod text;
mod words;

use vmferry_guest::params::Params;
use vmferry_guest::pattern::Pattern;

use rng::Rng;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// What pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Nothing.
    Zero,
    /// Prose: some six hundred words, few of them often.
    Text,
    /// Records of pointers and small numbers, those that the built-in guest has.
    Structs,
    /// Nothing that a codec could find.
    Random,
    /// Of each page, one of the others.
    Mixed,
    /// What of this program lies in memory while it runs: instructions, tables, strings.
    Code,
    /// Objects as APIs and logs have them.
    Json,
    /// Slotted pages of a table.
    Database,
}

impl Content {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Zero,
        Self::Text,
        Self::Structs,
        Self::Random,
        Self::Mixed,
        Self::Code,
        Self::Json,
        Self::Database,
    ];

    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Text => "text",
            Self::Structs => "structs",
            Self::Random => "random",
            Self::Mixed => "mixed",
            Self::Code => "code",
            Self::Json => "json",
            Self::Database => "database",
        }
    }
}

/// `count` pages.
#[must_use]
pub fn pages(content: Content, seed: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count * PAGE];
    for (number, page) in (0..).zip(out.chunks_exact_mut(PAGE)) {
        fill(content, seed, number, page);
    }
    out
}

fn fill(content: Content, seed: u64, number: u64, page: &mut [u8]) {
    let mut rng = Rng::of_page(seed, number);
    match content {
        Content::Zero => {}
        Content::Text => page.copy_from_slice(&text::page(&mut rng)),
        Content::Structs => {
            let params = Params {
                zero: 0,
                text: 0,
                structs: 100,
                seed,
                ..Params::default()
            };
            let mut pattern = Pattern::of(&params, number);
            write_words(page, || pattern.next_word());
        }
        Content::Random => write_words(page, || rng.next()),
        Content::Mixed => {
            let others = Content::ALL.map(|c| (c != Content::Mixed).then_some(c));
            let others: Vec<Content> = others.into_iter().flatten().collect();
            fill(*rng.pick(&others), seed, number, page);
        }
        Content::Code => page.copy_from_slice(code::page(seed, number)),
        Content::Json => page.copy_from_slice(&json::page(&mut rng, number)),
        Content::Database => database::fill(&mut rng, number, page),
    }
}

fn write_words(page: &mut [u8], mut next: impl FnMut() -> u64) {
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&next().to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
