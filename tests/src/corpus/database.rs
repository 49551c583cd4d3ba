//! Slotted pages of a table of orders: a header, slots that grow up, rows that grow down, and
//! nothing in between.

use super::PAGE;
use super::rng::Rng;
use super::text::word;

const HEADER: usize = 24;
const SLOT: usize = 4;
/// Pages that are updated are not full.
const LEAST_FREE: u64 = 80;
const MOST_FREE: u64 = 1400;
const STATES: [&str; 5] = ["open", "paid", "paid", "shipped", "returned"];

pub(super) fn fill(rng: &mut Rng, number: u64, page: &mut [u8]) {
    let free = (LEAST_FREE + rng.small(MOST_FREE)) as usize;
    let (mut lower, mut upper) = (HEADER, PAGE);
    for slot in 1.. {
        let row = row(rng, number, slot);
        let begin = (upper - row.len().min(upper)) & !7;
        if lower + SLOT + free > begin {
            break;
        }
        page[begin..begin + row.len()].copy_from_slice(&row);
        // Offset, in use, length.
        let entry = begin as u32 | 1 << 15 | (row.len() as u32) << 17;
        page[lower..lower + SLOT].copy_from_slice(&entry.to_le_bytes());
        (lower, upper) = (lower + SLOT, begin);
    }
    let log_position = 0x2a_0000_0000 + number * 9000 + rng.below(9000);
    page[..8].copy_from_slice(&log_position.to_le_bytes());
    let checksum = rng.next() as u16;
    let shorts = [checksum, 0, lower as u16, upper as u16, PAGE as u16, 0x1004];
    for (at, short) in (8..).step_by(2).zip(shorts) {
        page[at..at + 2].copy_from_slice(&short.to_le_bytes());
    }
}

/// Its header and NULL bitmap, then numbers, then what varies in length.
fn row(rng: &mut Rng, page: u64, slot: u16) -> Vec<u8> {
    let mut row = Vec::with_capacity(160);
    let created_by = 8_000_000 + page as u32 * 3 + u32::from(slot) / 16;
    let deleted_by = if rng.once_in(12) {
        created_by + 40_000
    } else {
        0
    };
    for n in [created_by, deleted_by, 0, page as u32] {
        row.extend(n.to_le_bytes());
    }
    let (name, note) = (!rng.once_in(5), rng.once_in(3));
    let present = 0b0011_1111 | u8::from(name) << 6 | u8::from(note) << 7;
    for n in [slot, 8, 0x0903] {
        row.extend(n.to_le_bytes());
    }
    row.extend([24, present]);
    let id = page * 40 + u64::from(slot);
    row.extend(id.to_le_bytes());
    // Microseconds since 2000.
    let created = 848_000_000_000_000 + id * 310_000 + rng.below(300_000);
    row.extend(created.to_le_bytes());
    row.extend((rng.small(2_000_000) as u32).to_le_bytes());
    row.extend((rng.small(50_000) as u32).to_le_bytes());
    row.extend((1 + rng.small(8) as u32).to_le_bytes());
    varying(&mut row, rng.pick(&STATES).as_bytes());
    if name {
        let (first, last) = (word(rng), word(rng));
        varying(&mut row, format!("{first} {last}").as_bytes());
    }
    if note {
        let words: Vec<&str> = (0..3 + rng.below(6)).map(|_| word(rng)).collect();
        varying(&mut row, words.join(" ").as_bytes());
    }
    row
}

fn varying(row: &mut Vec<u8>, bytes: &[u8]) {
    row.push((bytes.len() as u8) << 1 | 1);
    row.extend(bytes);
}
