//! What can be wrong with a disk, in words.

use core::fmt;

use super::ledger::{ANY, Allowed};

/// A failure, and who found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The vCPU that found it.
    pub vcpu: u32,
    /// What it is.
    pub fault: Fault,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No disk at the address.
    NoDisk {
        /// What is there in place of the magic value, or of the device's number.
        found: u32,
    },
    /// A register or a field is not as it must be.
    Device {
        /// Which.
        what: &'static str,
        /// What it must be, or at least be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// The device has given up on the driver, and answers nothing any more.
    NeedsReset,
    /// The device says that more has come back than was in flight.
    TooMany {
        /// Requests in flight.
        in_flight: u32,
        /// Completions.
        claimed: u32,
    },
    /// Something came back that is not in flight: a second time, or never issued.
    NotInFlight {
        /// The id in the used ring.
        id: u32,
    },
    /// A request came back in a wrong way.
    Completion {
        /// What is wrong with it.
        what: &'static str,
        /// Its block, 0 of a flush.
        block: u64,
        /// What it must be.
        expected: u32,
        /// What it is.
        found: u32,
    },
    /// A sector is not one that this vCPU wrote there.
    Content {
        /// Which field gives it away.
        what: &'static str,
        /// Block of the disk.
        block: u64,
        /// Sector of the block.
        sector: u32,
        /// What the field must be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A sector is of a write that is not possible any more.
    Stale {
        /// Block of the disk.
        block: u64,
        /// Sector of the block.
        sector: u32,
        /// What is possible.
        allowed: Allowed,
        /// What is there.
        found: u32,
    },
    /// The block cannot be read back: the disk gives errors again and again.
    Unreadable {
        /// Block of the disk.
        block: u64,
    },
    /// What the driver keeps in RAM makes no sense.
    Memory {
        /// Block of the disk that it is about.
        block: u64,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk: vCPU {}: {}", self.vcpu, self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk { found } => write!(
                f,
                "there is no disk ({found:#x} found): give the machine one, or disk-depth=0"
            ),
            Self::Device {
                what,
                expected,
                found,
            } => write!(
                f,
                "the device does not fit: {what} is {found:#x}, expected {expected:#x}"
            ),
            Self::NeedsReset => {
                f.write_str("the device wants to be reset: it takes the queue for broken")
            }
            Self::TooMany { in_flight, claimed } => write!(
                f,
                "{claimed} requests came back where {in_flight} were in flight"
            ),
            Self::NotInFlight { id } => {
                write!(f, "id {id} came back, which is not in flight")
            }
            Self::Completion {
                what,
                block,
                expected,
                found,
            } => write!(
                f,
                "a request for block {block} came back with {what} {found}, expected {expected}"
            ),
            Self::Content {
                what,
                block,
                sector,
                expected,
                found,
            } => write!(
                f,
                "block {block} sector {sector}: {what} is {found:#x}, expected {expected:#x}"
            ),
            Self::Stale {
                block,
                sector,
                allowed,
                found,
            } => {
                write!(
                    f,
                    "block {block} sector {sector}: generation {found} found, expected"
                )?;
                for &generation in allowed.list() {
                    match generation {
                        ANY => f.write_str(" any")?,
                        one => write!(f, " {one}")?,
                    }
                }
                Ok(())
            }
            Self::Unreadable { block } => {
                write!(f, "block {block} cannot be read back: only errors come")
            }
            Self::Memory { block } => write!(
                f,
                "the driver's records in RAM make no sense (block {block}): RAM was lost"
            ),
        }
    }
}
