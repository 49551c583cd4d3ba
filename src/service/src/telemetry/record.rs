//! All that the spans of one side of a migration are built from.

use serde::{Deserialize, Serialize};
use vmferry_engine::report::{DestinationTimeline, MigrationReport};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::trace::TraceParent;

use crate::model::MigrationState;

/// When both hosts looked whether the migration could be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreflightTimes {
    /// Begin: microseconds since 1970, UTC, by this host's clock.
    pub began_unix_us: u64,
    /// End.
    pub ended_unix_us: u64,
    /// How many problems were found.
    pub problems: u64,
}

/// What one side saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Story {
    /// The machine was to leave, and this is how that went.
    Source(Box<MigrationReport>),
    /// The machine was to leave, and no process tells how that went: it was refused before it
    /// began, or its process died.
    Unreported {
        /// When it was asked for: microseconds since 1970, UTC.
        asked_unix_us: u64,
        /// When it was over.
        ended_unix_us: u64,
        /// Why it is not complete, in words.
        reason: String,
        /// How it ended, as far as is known: [`MigrationState::is_over`].
        state: MigrationState,
    },
    /// The machine was to come.
    Destination {
        /// What its process said.
        timeline: Box<DestinationTimeline>,
        /// Why nothing arrived; none where the guest is here.
        failure: Option<String>,
    },
}

/// One side of a migration that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationRecord {
    /// The migration.
    pub migration: MigrationId,
    /// The machine.
    pub vm: String,
    /// This host.
    pub host: String,
    /// The other host.
    pub peer: String,
    /// At the source: the span of whoever asked for the migration, if it has one. At the
    /// destination: what the source told of the migration's span; where there is none, the span
    /// that a source without a parent has.
    pub parent: Option<TraceParent>,
    /// How far the other host's clock is ahead of this one's, in milliseconds, where it was
    /// measured.
    pub clock_ahead_ms: Option<f64>,
    /// At the source, where there was one.
    pub preflight: Option<PreflightTimes>,
    /// What happened.
    pub story: Story,
}
