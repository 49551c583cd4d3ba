//! Where a VM process can be made to stand still, and what is killed then.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A side of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The guest begins here.
    Source,
    /// It is to come here.
    Destination,
}

/// What a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The source's process.
    Source,
    /// The destination's process.
    Destination,
    /// All connections between them; new ones can be made.
    Connection,
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Source, Self::Destination, Self::Connection];
}

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $name:ident: $side:ident,)+) => {
        /// A point of the switchover at which a process stands still when it is told to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Point {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Point {
            /// All of them, in the order of a migration as far as there is one.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Whose process stands there.
            #[must_use]
            pub const fn side(self) -> Side {
                match self {
                    $(Self::$name => Side::$side,)+
                }
            }
        }
    };
}

points! {
    /// The vCPUs are to stop.
    PauseBefore: Source,
    /// They have.
    PauseAfter: Source,
    /// The first storage job is to be cancelled.
    CancelFirst: Source,
    /// The backend is to be held; everything was asked to end.
    HoldBefore: Source,
    /// It is held.
    HoldAfter: Source,
    /// The machine's state is to be saved.
    SaveBefore: Source,
    /// It was.
    SaveAfter: Source,
    /// The destination has everything but a machine with that state.
    RestoreBefore: Destination,
    /// The machine has its state and its adopted jobs.
    RestoreAfter: Destination,
    /// `prepared` is to be written.
    PreparedBefore: Destination,
    /// It is on disk; nobody knows.
    PreparedAfter: Destination,
    /// `relinquished` is to be written.
    RelinquishBefore: Source,
    /// It is on disk; nothing was committed.
    RelinquishAfter: Source,
    /// `owner` is to be written.
    OwnerBefore: Destination,
    /// It is on disk; the guest stands.
    OwnerAfter: Destination,
    /// The guest is to run: its disks are about to be this side's.
    ResumeBefore: Destination,
    /// The disk is about to be this side's.
    Inherit: Destination,
    /// The first job is to be handed to the storage.
    FirstSubmit: Destination,
    /// The guest runs; nobody knows.
    ResumeAfter: Destination,
    /// The storage is to be asked for the former owner.
    FormerOwner: Destination,
    /// A write that was given up has ended; nobody knows.
    LateEnd: Source,
    /// That writes are settled is to be written.
    SettledBefore: Destination,
    /// It is on disk; the source does not know.
    SettledAfter: Destination,
    /// That the guest was told of adopted jobs is to be written.
    CompletedBefore: Destination,
    /// It is on disk.
    CompletedAfter: Destination,
    /// `released` is to be written.
    ReleasedBefore: Source,
    /// It is on disk; the machine is still there.
    ReleasedAfter: Source,
    /// The machine that was left behind is to be ended.
    StopBefore: Source,
}

impl Point {
    /// Whether it is there only where storage jobs outlast the pause.
    #[must_use]
    pub const fn needs_slow_storage(self) -> bool {
        matches!(
            self,
            Self::CancelFirst
                | Self::FormerOwner
                | Self::LateEnd
                | Self::SettledBefore
                | Self::SettledAfter
                | Self::CompletedBefore
                | Self::CompletedAfter
        )
    }
}

fn named<T: fmt::Debug + Copy>(all: &[T], name: &str) -> Result<T, String> {
    let is_it = |it: &&T| format!("{it:?}").eq_ignore_ascii_case(name);
    all.iter()
        .find(is_it)
        .copied()
        .ok_or_else(|| format!("'{name}' is none of {all:?}"))
}

impl FromStr for Point {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(Self::ALL, name)
    }
}

impl FromStr for Victim {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(&Self::ALL, name)
    }
}
