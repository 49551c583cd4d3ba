//! Memory that a move finds at hand.
//!
//! A virtual machine whose host takes back what is free (free page reporting,
//! Documentation/mm/free_page_reporting.rst) gets memory anew at the first touch, page by page from
//! that host, many times slower than what was touched lately. A guest is filled once, and the
//! destination takes its RAM while the migration runs: how long that lasts would say more about
//! what ran before than about the migration. So a bench touches as much memory before each move,
//! and gives it back right when it is needed.

use vmferry_memory::{GuestRam, HUGE_PAGE_SIZE};
use vmferry_protocol::{PAGE_SIZE, PageRange};

/// Touched memory, given back when dropped.
#[derive(Debug)]
pub struct Warm {
    _ram: GuestRam,
}

impl Warm {
    /// Takes so many MiB, and touches all of it.
    ///
    /// # Errors
    /// In words, where there is not enough.
    pub fn take(mib: u64) -> Result<Self, String> {
        let in_words = |e: vmferry_memory::MemoryError| format!("{mib} MiB of memory: {e}");
        let ram = GuestRam::new(mib << 20).map_err(in_words)?;
        let a_block = HUGE_PAGE_SIZE / PAGE_SIZE;
        for region in ram.regions() {
            for gfn in region.range.frames().step_by(a_block as usize) {
                let page = PageRange::new(gfn, 1);
                ram.copy_in(page, &[1; PAGE_SIZE as usize])
                    .map_err(in_words)?;
            }
        }
        Ok(Self { _ram: ram })
    }
}

/// MiB of RAM that the arguments of a demo give to its guest; none where they do not say.
#[must_use]
pub fn ram_mib(args: &[&str]) -> Option<u64> {
    let at = args.iter().position(|arg| *arg == "--mem")?;
    let size = args.get(at + 1)?;
    let (number, shift) = match size.split_at_checked(size.len().checked_sub(1)?)? {
        (number, "M") => (number, 0),
        (number, "G") => (number, 10),
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_what_a_demo_is_told() {
        assert_eq!(ram_mib(&["--vcpus", "1", "--mem", "2G"]), Some(2048));
        assert_eq!(ram_mib(&["--mem", "304M", "--json"]), Some(304));
        for not in [&["--mem"][..], &["--mem", ""], &["--mem", "1é"], &["2G"]] {
            assert_eq!(ram_mib(not), None);
        }
    }

    #[test]
    fn all_of_it_is_touched() {
        let warm = Warm::take(8).unwrap();
        let mut touched = 0;
        warm._ram.populated(|run| touched += run.bytes()).unwrap();
        assert!(touched >= 4 * PAGE_SIZE);
    }
}
