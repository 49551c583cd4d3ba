//! Compressors of all migrations of a host share one budget: as many files as there are slots, of
//! which a migration locks one for each compressor that works beside its first.
//!
//! Locks (flock) end with the process that holds them, so nothing is left behind by one that dies.
//! A migration's first compressor needs no slot: it would not end without.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// A host's budget: compressors that work at once, whichever migration they work for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Directory of the files, the same for all processes of the host; made where there is none.
    pub dir: PathBuf,
    /// Compressors that may work at once, beside one for each migration.
    pub slots: usize,
}

impl Budget {
    /// How many slots migrations hold now. Blocks, but waits for nobody.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let is_held = |slot: &usize| {
            let file = File::open(self.slot(*slot));
            file.is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockShared).is_err())
        };
        (0..self.slots).filter(is_held).count()
    }

    fn slot(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("compressor-{slot}"))
    }
}

/// What a migration holds of it.
#[derive(Debug)]
pub(crate) struct Slots {
    budget: Budget,
    held: Vec<(usize, File)>,
}

impl Slots {
    pub(crate) fn of(budget: Budget) -> Self {
        Self {
            budget,
            held: Vec::new(),
        }
    }

    /// Holds `wanted` slots, or as many as there are. Returns how many.
    pub(crate) fn hold(&mut self, wanted: usize) -> usize {
        self.held.truncate(wanted);
        if self.held.len() < wanted
            && let Err(error) = self.more(wanted)
        {
            let dir = self.budget.dir.display();
            tracing::debug!(%error, %dir, "no more compressors: the budget cannot be used");
        }
        self.held.len()
    }

    fn more(&mut self, wanted: usize) -> io::Result<()> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&self.budget.dir)?;
        for slot in 0..self.budget.slots {
            if self.held.len() == wanted {
                break;
            }
            if self.held.iter().any(|(held, _)| *held == slot) {
                continue;
            }
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.budget.slot(slot))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => self.held.push((slot, file)),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_share_what_there_is_and_what_one_gives_up_another_gets() {
        let dir = tempfile::tempdir().unwrap();
        let budget = Budget {
            dir: dir.path().join("compressors"),
            slots: 3,
        };
        let (mut one, mut other) = (Slots::of(budget.clone()), Slots::of(budget));
        assert_eq!(one.hold(2), 2);
        assert_eq!(other.hold(2), 1);
        assert_eq!(one.hold(1), 1);
        assert_eq!(other.hold(2), 2);
        drop(one);
        assert_eq!(other.hold(9), 3);
        assert_eq!(other.hold(0), 0);
    }

    #[test]
    fn a_budget_that_cannot_be_used_gives_nothing_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut slots = Slots::of(Budget {
            dir: file.path().join("not-a-directory"),
            slots: 3,
        });
        assert_eq!(slots.hold(2), 0);
    }
}
