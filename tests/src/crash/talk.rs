//! What harness and VM process say to each other: lines of JSON on its standard input and output.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmferry_machine::MachineConfig;

use super::log::Process;
use super::{Point, Side};

/// What a VM process is started with, as its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Which side it plays.
    pub(super) side: Side,
    /// Its number in the log of writes.
    pub(super) process: Process,
    /// Its own directory.
    pub(super) dir: PathBuf,
    /// The log of writes.
    pub(super) log: PathBuf,
    /// Directory with its keys.
    pub(super) keys: PathBuf,
    /// Where it is to stand still.
    pub(super) point: Option<Point>,
    /// How long, in milliseconds, a source tries to reach its destination after the handover.
    pub(super) reconnect_ms: u64,
    /// How slow the disk is for a machine that comes here, in milliseconds.
    pub(super) delay_ms: u32,
}

/// A migration as it is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Where to.
    pub(super) to: SocketAddr,
    /// The migration's secret.
    pub(super) token: String,
    /// Its name.
    pub(super) migration: String,
    /// How changed pages are found.
    pub(super) tracker: String,
}

/// How a VM process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// The guest runs.
    pub(super) running: bool,
    /// `owner` was on its way to disk, or is there.
    pub(super) owner: bool,
    /// Writes of a former owner that are not settled.
    pub(super) fences: u64,
    /// Disk requests answered with an error.
    pub(super) errors: u64,
}

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Boot a machine, if the journal allows that, with the fences that it knows of.
    Boot(Box<MachineConfig>),
    /// Wait for a machine; answered by [`Event::Listening`].
    Receive {
        /// The migration's secret.
        token: String,
    },
    /// Move the machine away.
    Migrate(Order),
    /// Go on where it stands still.
    Go,
    /// Tell when every vCPU has worked and had a disk request done.
    Advance,
    /// Have every vCPU verify RAM and disk, all requests waited for.
    Verify,
    /// Tell how it is.
    Status,
    /// End the machine, then the process.
    Exit,
}

/// A record that was put on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kept {
    /// As in [`vmferry_protocol::ownership::Record`].
    Prepared,
    /// The same.
    Relinquished,
    /// The same.
    Owner,
    /// The same.
    Released,
    /// The same.
    Discarded,
    /// Of storage jobs only.
    Jobs,
    /// The migration's records were dropped.
    Forgotten,
}

/// How a migration ended at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LeftAs {
    /// The guest is at the destination.
    Completed,
    /// It runs on.
    Aborted,
    /// Nobody knows.
    Undecided,
}

/// What it tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    /// It takes commands.
    Up,
    /// What it was told cannot be done; why.
    Refused(String),
    /// It listens there.
    Listening(SocketAddr),
    /// It stands still.
    At(Point),
    /// The workload works, or has gone on working.
    Works,
    /// What the vCPUs have said.
    Verified(Vec<u32>),
    /// The guest has arrived, and runs.
    Arrived,
    /// The migration from here has ended.
    Left(LeftAs, String),
    /// The migration to here has ended; why, if nothing has come.
    Received(Option<String>),
    /// This is on disk.
    Kept(Kept),
    /// How it is.
    Status(Status),
    /// The guest has ended by itself; how.
    Ended(String),
    /// The process is gone. Said by the harness.
    Gone,
}
