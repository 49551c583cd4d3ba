//! The corpus is what it says, and compresses as such content does.

use std::collections::HashSet;

use vmferry_codecs::CodecSpec;

use super::*;

/// How many times shorter 4 MiB become with zstd:1, a chunk of 256 KiB at a time.
fn compresses(content: Content) -> f64 {
    let plain = pages(content, 11, 1024);
    let mut codec = vmferry_codecs::encoder(CodecSpec::Zstd(1)).unwrap();
    let mut encoded = 0;
    for chunk in plain.chunks(64 * PAGE) {
        let mut out = Vec::new();
        let shorter = codec.encode(chunk, &mut out).unwrap();
        encoded += if shorter { out.len() } else { chunk.len() };
    }
    plain.len() as f64 / encoded as f64
}

#[test]
fn a_seed_makes_the_same_pages_again_and_another_makes_others() {
    for content in Content::ALL {
        let first = pages(content, 1, 33);
        assert_eq!(first.len(), 33 * PAGE);
        assert_eq!(first, pages(content, 1, 33), "{}", content.name());
        let fewer = pages(content, 1, 5);
        assert_eq!(first[..5 * PAGE], fewer, "{}", content.name());
        let other = pages(content, 2, 33);
        assert_eq!(first == other, content == Content::Zero);
        assert!(pages(content, 3, 0).is_empty());
    }
}

#[test]
fn names_differ() {
    let names: HashSet<_> = Content::ALL.map(Content::name).into_iter().collect();
    assert_eq!(names.len(), Content::ALL.len());
}

#[test]
fn no_page_is_like_another_and_none_but_zero_is_zero() {
    for content in Content::ALL {
        let made = pages(content, 5, 200);
        let zero = made.chunks(PAGE).filter(|p| vmferry_codecs::is_zero(p));
        match content {
            Content::Zero => assert_eq!(zero.count(), 200),
            Content::Mixed => assert!((15..45).contains(&zero.count())),
            _ => {
                assert_eq!(zero.count(), 0, "{}", content.name());
                let different: HashSet<&[u8]> = made.chunks(PAGE).collect();
                // A linker may have put the same page of a program into it twice.
                assert!(different.len() > 190, "{}", content.name());
            }
        }
    }
}

#[test]
fn contents_compress_in_their_order() {
    use Content::{Code, Database, Json, Mixed, Random, Structs, Text, Zero};
    let random = compresses(Random);
    assert!(random < 1.01, "{random}");
    assert!(compresses(Zero) > 500.0);
    for content in [Text, Structs, Json, Database] {
        let times = compresses(content);
        let name = content.name();
        assert!((1.8..12.0).contains(&times), "{name}: {times}");
    }
    // How well depends on the compiler's options.
    let code = compresses(Code);
    assert!((1.3..6.0).contains(&code), "{code}");
    let mixed = compresses(Mixed);
    assert!((1.5..8.0).contains(&mixed), "{mixed}");
    assert!(compresses(Text) < compresses(Json));
}

#[test]
fn structs_are_what_the_guest_fills() {
    let params = Params::parse(b"fill=0:0:0:100 seed=4");
    let mut pattern = Pattern::of(&params, 2);
    let made = pages(Content::Structs, 4, 3);
    for word in made[2 * PAGE..].chunks_exact(8) {
        assert_eq!(word, pattern.next_word().to_le_bytes());
    }
}

#[test]
fn text_is_prose_of_some_six_hundred_words() {
    assert!((550..700).contains(&text::vocabulary_len()));
    let made = String::from_utf8(pages(Content::Text, 1, 50)).unwrap();
    assert!(
        made.bytes()
            .all(|b| b == b'\n' || (b' '..=b'~').contains(&b))
    );
    let the = made.matches(" the ").count();
    assert!((600..4000).contains(&the), "{the}");
}

#[test]
fn json_is_json() {
    for page in pages(Content::Json, 1, 30).chunks(PAGE) {
        let mut lines: Vec<&str> = std::str::from_utf8(page).unwrap().lines().collect();
        // The last is cut off by the page's end.
        lines.pop();
        assert!(lines.len() > 5);
        for line in lines {
            let whole = line.starts_with('{') && line.ends_with('}');
            let count = |c| line.matches(c).count();
            assert!(whole && count('{') == count('}'), "{line}");
            assert!(count('[') == count(']') && count('"') % 2 == 0, "{line}");
        }
    }
}

#[test]
fn rows_of_a_database_page_lie_where_its_slots_say() {
    for page in pages(Content::Database, 1, 50).chunks(PAGE) {
        let short = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
        let (lower, upper) = (short(12), short(14));
        assert!(lower + 80 <= upper && lower > 100);
        assert!(vmferry_codecs::is_zero(&page[lower..upper]));
        let mut above = PAGE;
        for at in (24..lower).step_by(4) {
            let (offset, len) = (short(at) & 0x7fff, short(at + 2) >> 1);
            assert!(offset >= upper && offset + len <= above);
            // Each row knows its own slot.
            assert_eq!(short(offset + 16), (at - 24) / 4 + 1);
            above = offset;
        }
        assert_eq!(above, upper);
    }
}
