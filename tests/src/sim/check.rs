//! What must hold after every step, and what it looks like when it does not.

use thiserror::Error;
use vmferry_protocol::message::RunState;
use vmferry_protocol::ownership::{Record, Recovery, Role, recover};

use super::guest::Memory;
use super::world::MIGRATION;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Both sides may run the guest.
    #[error("both sides may run the guest")]
    TwoOwners,
    /// No side will ever run the guest again.
    #[error("no side may run the guest any more")]
    NoOwner,
    /// The guest arrived with a page that is not as it was at the pause.
    #[error("page {gfn:#x} has version {there}, but had {here} when the guest was paused")]
    LostPage {
        /// Where.
        gfn: u64,
        /// At the source.
        here: u32,
        /// At the destination.
        there: u32,
    },
    /// The guest runs where it was paused, or the other way round.
    #[error("the guest was {before:?} before the migration and is not so after it")]
    RunState {
        /// As it was.
        before: RunState,
    },
    /// A page was sent again before it was acknowledged.
    #[error("a page of the run from {0:#x} is on its way twice")]
    TwiceOnItsWay(u64),
    /// More pages on their way than allowed.
    #[error("{0} pages are on their way, more than the window has")]
    Window(u64),
    /// A side did what it must not do in its place.
    #[error("{0}")]
    Order(String),
    /// Storage was used as it must not be.
    #[error("storage: {0}")]
    Storage(String),
    /// It neither ends nor waits for anything.
    #[error("it does not end: {0}")]
    Endless(String),
}

/// Where the guest may run, as seen from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Rights {
    /// The guest is in use here: at the source from the start, and wherever it was resumed.
    pub(super) active: [bool; 2],
    /// What is on the disks.
    pub(super) disks: [Vec<Record>; 2],
}

impl Rights {
    pub(super) fn recovery(&self, side: usize) -> Recovery {
        let role = [Role::Source, Role::Destination][side];
        recover(role, MIGRATION, &self.disks[side])
    }

    /// At most one side runs the guest or would after a crash, and not both drop it.
    pub(super) fn check(&self) -> Result<(), Violation> {
        let here = [self.recovery(0), self.recovery(1)];
        let may = |i: usize| self.active[i] || here[i] == Recovery::Run;
        if may(0) && may(1) {
            return Err(Violation::TwoOwners);
        }
        if here == [Recovery::Drop; 2] {
            return Err(Violation::NoOwner);
        }
        Ok(())
    }
}

/// The guest is about to run at the destination: is all of it there?
pub(super) fn arrived_whole(source: &Memory, destination: &Memory) -> Result<(), Violation> {
    match source.first_difference(destination) {
        None => Ok(()),
        Some((gfn, here, there)) => Err(Violation::LostPage { gfn, here, there }),
    }
}
