//! Whether a disk holds what it must, by the log of writes. Pure.
//!
//! A write lasts from the moment it was first handed to a storage until it was done for the last
//! time: a write that is handed over is issued again, and counts as done only after that. One that
//! was never done lasts until nobody had the disk any more. Where two writes of a block overlap in
//! time either may be what is left of them; otherwise the earlier one must be gone. That is the
//! case for every sector by itself: a write that was cut off may have come only half way.

use std::collections::{BTreeMap, HashMap};

use vmferry_guest::disk::stamp::{SECTORS, Stamp};

use super::block::{BLOCK, Block};
use super::log::{Process, Record, What};

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that the log knows.
    pub writes: usize,
    /// Of these, those that were never done.
    pub open: usize,
    /// Writes that were handed to a storage more than once.
    pub reissued: usize,
    /// Blocks that were written.
    pub blocks: usize,
}

/// When a write took place, by numbers of records.
#[derive(Clone, Copy, Debug)]
struct Life {
    begun: usize,
    issues: usize,
    done: Option<usize>,
    over: Option<usize>,
}

impl Life {
    fn end(&self) -> usize {
        self.done.or(self.over).unwrap_or(usize::MAX)
    }
}

/// What names a write of a block.
type Name = (u64, u32, u32);

fn name(stamp: &Stamp) -> Name {
    (stamp.nonce, stamp.generation, stamp.vcpu)
}

type Lives = BTreeMap<u64, HashMap<Name, Life>>;

fn lives(records: &[Record]) -> Result<Lives, String> {
    let mut lives = Lives::new();
    for (at, record) in records.iter().enumerate() {
        match record.what {
            What::Submitted(stamp) => {
                let of_block = lives.entry(stamp.block).or_default();
                let life = of_block.entry(name(&stamp)).or_insert(Life {
                    begun: at,
                    issues: 0,
                    done: None,
                    over: None,
                });
                life.issues += 1;
                life.done = None;
            }
            What::Done(stamp) => {
                let life = lives
                    .get_mut(&stamp.block)
                    .and_then(|of_block| of_block.get_mut(&name(&stamp)))
                    .ok_or_else(|| format!("done, but never asked for: {stamp:?}"))?;
                life.done = Some(at);
            }
            What::Odd(block) => {
                return Err(format!(
                    "process {} wrote what no guest writes to block {block}",
                    record.process
                ));
            }
            What::Quiet => {
                for life in lives.values_mut().flat_map(HashMap::values_mut) {
                    life.over.get_or_insert(at);
                }
            }
            What::Runs | What::Stands | What::Held | What::Died => {}
        }
    }
    Ok(lives)
}

/// Whether `image` is what is left of the writes in `records`.
///
/// # Errors
/// In words: the first block that is wrong, and how.
pub fn image(records: &[Record], image: &[u8]) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for (number, writes) in lives(records)? {
        tally.blocks += 1;
        tally.writes += writes.len();
        tally.open += writes.values().filter(|l| l.done.is_none()).count();
        tally.reissued += writes.values().filter(|l| l.issues > 1).count();
        let bytes = usize::try_from(number)
            .ok()
            .and_then(|n| image.get(n.checked_mul(BLOCK)?..)?.first_chunk())
            .ok_or_else(|| format!("block {number} is not within the disk"))?;
        let block = Block::from(bytes);
        for at in 0..SECTORS {
            sector(&block, at, number, &writes)
                .map_err(|why| format!("block {number}, sector {at}: {why}"))?;
        }
    }
    Ok(tally)
}

fn sector(
    block: &Block,
    at: usize,
    number: u64,
    writes: &HashMap<Name, Life>,
) -> Result<(), String> {
    let (found, end) = if block.is_blank(at) {
        ("nothing".to_owned(), 0)
    } else {
        if !block.is_of(at, number) {
            return Err(format!("damaged: {:?}", block.sector(at)));
        }
        let stamp = block.sector(at).stamp;
        let life = writes
            .get(&name(&stamp))
            .ok_or_else(|| format!("{stamp:?} was never written"))?;
        (format!("{stamp:?} ({life:?})"), life.end())
    };
    let lost = writes
        .iter()
        .find(|(_, life)| life.done.is_some() && life.begun >= end);
    match lost {
        Some((name, life)) => Err(format!(
            "there is {found}, though {name:?} ({life:?}) was acknowledged after it"
        )),
        None => Ok(()),
    }
}

/// Whether never two processes ran the guest, or wrote to the disk, at a time.
///
/// # Errors
/// In words: who, and at which record.
pub fn owners(records: &[Record]) -> Result<(), String> {
    let (mut runs, mut writes): (Option<Process>, Option<Process>) = (None, None);
    let begin = |who: &mut Option<Process>, process, does: &str, at| match *who {
        Some(other) if other != process => Err(format!(
            "record {at}: process {process} {does} while process {other} does"
        )),
        _ => {
            *who = Some(process);
            Ok(())
        }
    };
    for (at, &Record { process, what }) in records.iter().enumerate() {
        let end = |who: &mut Option<Process>| {
            who.take_if(|p| *p == process);
        };
        match what {
            What::Runs => begin(&mut runs, process, "runs the guest", at)?,
            What::Submitted(_) => begin(&mut writes, process, "writes", at)?,
            What::Stands => end(&mut runs),
            What::Held => end(&mut writes),
            What::Died => {
                end(&mut runs);
                end(&mut writes);
            }
            What::Done(_) | What::Odd(_) | What::Quiet => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmferry_guest::disk::stamp::fill;

    use super::*;

    fn stamp(generation: u32) -> Stamp {
        Stamp {
            nonce: 7,
            block: 1,
            generation,
            vcpu: 0,
        }
    }

    fn disk(sectors: [u32; SECTORS]) -> Vec<u8> {
        let mut bytes = vec![0; 2 * BLOCK];
        for (at, generation) in sectors.into_iter().enumerate() {
            if generation == 0 {
                continue;
            }
            let mut words = [0u64; BLOCK / 8];
            // SAFETY: a block of words.
            unsafe { fill(words.as_mut_ptr(), &stamp(generation)) };
            for (i, word) in words.iter().enumerate() {
                if i / 64 == at {
                    bytes[BLOCK + i * 8..][..8].copy_from_slice(&word.to_ne_bytes());
                }
            }
        }
        bytes
    }

    fn asked(process: Process, generation: u32) -> Record {
        let what = What::Submitted(stamp(generation));
        Record { process, what }
    }

    fn done(process: Process, generation: u32) -> Record {
        let what = What::Done(stamp(generation));
        Record { process, what }
    }

    fn says(process: Process, what: What) -> Record {
        Record { process, what }
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let log = [asked(0, 1), done(0, 1), asked(0, 2), done(0, 2)];
        assert!(image(&log, &disk([2; 8])).is_ok());
        for wrong in [[1; 8], [0; 8], [3; 8], [2, 2, 2, 2, 2, 2, 2, 1]] {
            assert!(image(&log, &disk(wrong)).is_err(), "{wrong:?}");
        }
        let mut damaged = disk([2; 8]);
        damaged[BLOCK + 100] ^= 1;
        assert!(image(&log, &damaged).unwrap_err().contains("damaged"));
    }

    #[test]
    fn what_was_not_may_be_there_wholly_or_half() {
        let log = [asked(0, 1), done(0, 1), asked(0, 2)];
        for right in [[1; 8], [2; 8], [2, 2, 1, 1, 1, 1, 1, 1]] {
            assert!(image(&log, &disk(right)).is_ok(), "{right:?}");
        }
        let log = [asked(0, 1)];
        assert!(image(&log, &disk([1, 0, 0, 0, 0, 0, 0, 0])).is_ok());
        // Not once others wrote after everything of it was through.
        let quiet = says(9, What::Quiet);
        let log = [asked(0, 1), quiet, asked(2, 5), done(2, 5)];
        assert!(image(&log, &disk([5; 8])).is_ok());
        assert!(image(&log, &disk([1; 8])).is_err());
    }

    #[test]
    fn of_two_at_a_time_either_may_be_left() {
        let log = [asked(0, 1), asked(0, 2), done(0, 2), done(0, 1)];
        assert!(image(&log, &disk([1; 8])).is_ok());
        assert!(image(&log, &disk([2; 8])).is_ok());
    }

    #[test]
    fn a_late_copy_of_a_write_over_a_newer_one_is_noticed() {
        // Given up at 0, issued again at 1, then overwritten there.
        let log = [
            asked(0, 1),
            says(0, What::Held),
            asked(1, 1),
            done(1, 1),
            asked(1, 2),
            done(1, 2),
        ];
        assert!(image(&log, &disk([2; 8])).is_ok());
        assert!(image(&log, &disk([1; 8])).is_err());
        assert_eq!(image(&log, &disk([2; 8])).unwrap().reissued, 1);
    }

    #[test]
    fn two_owners_are_noticed() {
        let (runs, stands) = (says(0, What::Runs), says(0, What::Stands));
        let held = says(0, What::Held);
        let there = says(1, What::Runs);
        assert!(owners(&[runs, asked(0, 1), stands, held, there, asked(1, 2)]).is_ok());
        assert!(owners(&[runs, there]).is_err());
        assert!(owners(&[asked(0, 1), asked(1, 2)]).is_err());
        assert!(owners(&[runs, asked(0, 1), says(0, What::Died), there, asked(1, 2)]).is_ok());
    }
}
