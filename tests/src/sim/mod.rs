//! The pair simulator: a source and a destination core, a link, a guest that writes, two disks for
//! records, and a disk that the guest uses.
//!
//! Whole migrations in virtual time, from a seed: no sockets, threads, clocks or page contents.
//! Every run checks, after every step, that at most one side has the right to run the guest and
//! that somebody still may have it, and, when the guest arrives, that each page has the version
//! it had when the guest was paused. What breaks is a [`Violation`]. The simulator plays both
//! drivers, so it also shows what the core expects from one; it does not test the real one.

mod check;
mod destination;
mod faults;
mod guest;
mod link;
mod scenario;
mod source;
mod storage;
mod world;

pub use check::Violation;
pub use guest::{Memory, Rng, Writes};
pub use link::{Direction, Link};
pub use scenario::{Costs, Cut, CutKind, DiskFault, Faults, PlantedBug, Scenario, Side, Trigger};
pub use storage::SimJob;
pub use world::{Report, run};
