//! The ledger against the definition of what a block may hold.

use crate::disk::ledger::{ANY, Allowed, Entry};
use crate::pattern::mix;

/// A write as it went, in ticks.
#[derive(Clone, Copy)]
struct Write {
    place: u32,
    issued: u64,
    /// When it came back, and whether it was acknowledged.
    back: Option<(u64, bool)>,
}

struct Read {
    allowed: Allowed,
    issued: u64,
}

/// Whether a read in `[from, now]` may find `generation`, by definition: issued by now, and not
/// superseded by a write issued after it came back and acknowledged before the read began.
fn may(writes: &[Write], generation: usize, from: u64) -> bool {
    let back = match generation {
        0 => 0,
        g => writes[g - 1].back.map_or(u64::MAX, |b| b.0),
    };
    !writes
        .iter()
        .any(|w| w.issued > back && matches!(w.back, Some((at, true)) if at < from))
}

fn run(seed: u64, failures: u64) -> u32 {
    let (mut entry, mut writes, mut reads) = (Entry::default(), Vec::<Write>::new(), Vec::new());
    let (mut acked, mut exact) = (0, 0);
    for tick in 1..200u64 {
        let dice = mix(seed << 32 | tick);
        let live: Vec<usize> = (0..writes.len())
            .filter(|&i| writes[i].back.is_none())
            .collect();
        match dice % 4 {
            0 => {
                let issued = entry.issue();
                assert_eq!(issued.is_some(), live.len() < 4);
                if let Some((place, generation)) = issued {
                    writes.push(Write {
                        place,
                        issued: tick,
                        back: None,
                    });
                    assert_eq!(generation as usize, writes.len());
                }
            }
            1 if !live.is_empty() => {
                let i = live[(dice >> 8) as usize % live.len()];
                let good = (dice >> 32) % 100 >= failures;
                writes[i].back = Some((tick, good));
                acked += u64::from(good);
                assert!(match good {
                    true => entry.acknowledge(writes[i].place, acked, 0),
                    false => entry.fail(writes[i].place),
                });
            }
            2 => reads.push(Read {
                allowed: entry.read(),
                issued: tick,
            }),
            _ if !reads.is_empty() => {
                let read: Read = reads.swap_remove((dice >> 8) as usize % reads.len());
                for generation in 1..=writes.len() {
                    let right = may(&writes, generation, read.issued);
                    let permitted = read.allowed.permits(generation as u32, entry.issued());
                    // After many failures, more may be permitted than is right; never less.
                    let lax = read.allowed.anything() || read.allowed.list().contains(&ANY);
                    let fits = permitted == right || (permitted && lax && failures > 0);
                    assert!(fits, "{seed} {tick}: {generation} of {:?}", read.allowed);
                    exact += u32::from(!right && !permitted);
                }
                let (right, permitted) = (may(&writes, 0, read.issued), read.allowed.anything());
                assert!(permitted == right || (permitted && failures > 0));
                entry.read_done(&read.allowed, None);
            }
            _ => {}
        }
    }
    exact
}

#[test]
fn what_is_permitted_is_what_is_possible() {
    for failures in [0, 10, 60] {
        let told: u32 = (0..300).map(|seed| run(seed, failures)).sum();
        assert!(told > 100_000, "{told}");
    }
}

#[test]
fn what_a_read_found_is_what_later_reads_find() {
    let mut entry = Entry::default();
    for _ in 0..2 {
        entry.issue().expect("room");
    }
    assert!(entry.acknowledge(0, 1, 0) && entry.acknowledge(1, 2, 0));
    let first = entry.read();
    // Neither was issued after the other came back: the block as it was is superseded by nothing
    // but them.
    assert_eq!(first.list(), [1, 2]);
    entry.read_done(&first, Some(1));
    assert_eq!(entry.read().list(), [1]);
}

#[test]
fn a_failed_write_stays_possible_until_a_later_one_is_acknowledged() {
    let mut entry = Entry::default();
    let (first, _) = entry.issue().expect("room");
    assert!(entry.acknowledge(first, 1, 0));
    let (second, _) = entry.issue().expect("room");
    assert!(entry.fail(second));
    let read = entry.read();
    assert_eq!(read.list(), [1, 2]);
    // It may happen yet: that it has not so far does not settle it.
    entry.read_done(&read, Some(1));
    assert_eq!(entry.read().list(), [1, 2]);
    let (third, _) = entry.issue().expect("room");
    assert!(entry.acknowledge(third, 2, 0));
    assert_eq!(entry.read().list(), [3]);
    assert!(!entry.acknowledge(third, 3, 0) && !entry.fail(third) && !entry.fail(99));
}

#[test]
fn what_a_flush_covers_is_durable() {
    let mut entry = Entry::default();
    assert_eq!(entry.durable(0), 0);
    for at in 1..=3 {
        let (place, _) = entry.issue().expect("room");
        // A flush that covers one acknowledgement is done before the third.
        assert!(entry.acknowledge(place, at, u64::from(at == 3)));
    }
    assert_eq!(
        [0, 2, 3, 9].map(|flushed_to| entry.durable(flushed_to)),
        [0, 0, 3, 3]
    );
    let mut entry = Entry::default();
    let (place, _) = entry.issue().expect("room");
    assert!(entry.acknowledge(place, 1, 0));
    let (place, _) = entry.issue().expect("room");
    assert!(entry.acknowledge(place, 2, 1));
    assert_eq!(entry.durable(1), 1);
    assert_eq!(entry.durable(2), 2);
}
