//! Pages of the program that runs: what its file says shall be loaded. Debug information, which
//! may be most of the file, is in no guest's memory.

use std::sync::LazyLock;

use vmferry_guest::pattern::mix;

use super::PAGE;

/// The pages that hold anything.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = std::env::current_exe().expect("this program knows where it is");
    let file = std::fs::read(path).expect("this program's file can be read");
    let mut image = Vec::new();
    for segment in loaded(&file) {
        let pages = segment.chunks_exact(PAGE);
        image.extend(pages.filter(|page| page.iter().any(|&b| b != 0)).flatten());
    }
    assert!(!image.is_empty(), "this program is an ELF with segments");
    image
});

const PT_LOAD: u64 = 1;

/// The contents of the loaded segments of a 64-bit ELF.
fn loaded(elf: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (table, size, count) = (
        number(elf, 32, 8),
        number(elf, 54, 2).max(1),
        number(elf, 56, 2),
    );
    let headers = elf.get(table..).unwrap_or_default().chunks_exact(size);
    headers
        .take(count)
        .filter(|header| number(header, 0, 4) as u64 == PT_LOAD)
        .filter_map(|header| {
            let (from, len) = (number(header, 8, 8), number(header, 32, 8));
            elf.get(from..from.checked_add(len)?)
        })
}

/// The little-endian number there, or zero beyond the end.
fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    let field = bytes.get(at..at + len).unwrap_or_default();
    field.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
}

/// Page `number` after one that the seed says, round and round.
pub(super) fn page(seed: u64, number: u64) -> &'static [u8] {
    let pages = (IMAGE.len() / PAGE) as u64;
    let at = (mix(seed) % pages + number % pages) % pages;
    &IMAGE[at as usize * PAGE..][..PAGE]
}
