//! From what one side reports to its spans. Pure.
//!
//! The tree, over both hosts: `migration` has `preflight`, `connect`, `pass 1`…, `blackout` (with
//! its eight parts), `go_back` and `settlement` of the source, and `receive` of the destination
//! with its parts. docs/operations.md tells what each of them is.

mod destination;
mod ids;
mod source;
mod tree;

pub use ids::migration_context;

use super::record::{MigrationRecord, Story};
use super::span::Span;

/// The spans of one side, the outermost first.
#[must_use]
pub fn spans(record: &MigrationRecord) -> Vec<Span> {
    match &record.story {
        Story::Source(report) => source::spans(record, report),
        Story::Unreported {
            asked_unix_us,
            ended_unix_us,
            reason,
            state,
        } => source::unreported(record, (*asked_unix_us, *ended_unix_us), reason, *state),
        Story::Destination { timeline, failure } => {
            destination::spans(record, timeline, failure.as_deref())
        }
    }
}
