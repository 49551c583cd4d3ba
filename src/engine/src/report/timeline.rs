//! When what happened, on either side, for traces: milliseconds since the side began.

use serde::{Deserialize, Serialize};
use vmferry_machine::DiskStats;
use vmferry_protocol::destination::Destination;
use vmferry_protocol::ids::Time;
use vmferry_protocol::source::Timeline;
use vmferry_protocol::trace::TraceParent;

use crate::clock::Clock;

fn ms(time: Time) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A moment that may not have been reached.
fn at(time: Time) -> Option<f64> {
    (!time.is_zero()).then(|| ms(time))
}

/// Moments of the source, in milliseconds since the migration began; none where not reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceTimeline {
    /// The migration's begin: microseconds since 1970, UTC, by this host's clock.
    pub began_unix_us: u64,
    /// W3C `traceparent` that the destination was told.
    pub traceparent: Option<String>,
    /// First connection.
    pub connected_ms: Option<f64>,
    /// The destination has made the machine.
    pub accepted_ms: Option<f64>,
    /// Pause asked for.
    pub pause_ms: Option<f64>,
    /// vCPUs stand still.
    pub paused_ms: Option<f64>,
    /// Storage IO cancelled.
    pub io_cancelled_ms: Option<f64>,
    /// State saved.
    pub state_saved_ms: Option<f64>,
    /// Last page acknowledged.
    pub final_acked_ms: Option<f64>,
    /// The destination is prepared.
    pub prepared_ms: Option<f64>,
    /// `relinquished` is on disk.
    pub relinquished_ms: Option<f64>,
    /// The guest runs there, as this side heard.
    pub resumed_ms: Option<f64>,
    /// All unsettled storage jobs are settled there.
    pub settled_ms: Option<f64>,
    /// It was given up.
    pub gave_up_ms: Option<f64>,
}

/// Moments of the destination, in milliseconds since it began to listen; none where not reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DestinationTimeline {
    /// When it began to listen: microseconds since 1970, UTC, by this host's clock.
    pub began_unix_us: u64,
    /// The migration, once its source had shown the token: 32 hexadecimal digits.
    pub migration_id: Option<String>,
    /// W3C `traceparent` of the migration's span, as the source said.
    pub traceparent: Option<String>,
    /// The source's first connection.
    pub connected_ms: Option<f64>,
    /// It was told what would come.
    pub offered_ms: Option<f64>,
    /// The empty machine was made.
    pub machine_made_ms: Option<f64>,
    /// The first pages were in RAM.
    pub first_page_ms: Option<f64>,
    /// All pages and the state were here.
    pub all_pages_ms: Option<f64>,
    /// State was set.
    pub restored_ms: Option<f64>,
    /// `prepared` was on disk.
    pub prepared_ms: Option<f64>,
    /// `owner` was on disk.
    pub owner_ms: Option<f64>,
    /// The vCPUs ran.
    pub resumed_ms: Option<f64>,
    /// Every storage job that came with the guest had ended.
    pub jobs_ended_ms: Option<f64>,
    /// The last fence was lifted.
    pub fences_lifted_ms: Option<f64>,
    /// All was closed.
    pub closed_ms: Option<f64>,
    /// Nothing arrived because somebody cancelled.
    pub cancelled: bool,
    /// How long `prepared` took to be written, in milliseconds.
    pub prepared_flush_ms: f64,
    /// How long `owner` took to be written, in milliseconds.
    pub owner_flush_ms: f64,
    /// How long starting the vCPUs took, in milliseconds.
    pub resume_took_ms: f64,
    /// Storage jobs that came to be issued again.
    pub jobs_cancelled: u64,
    /// Storage jobs that came as writes that might still happen.
    pub jobs_unsettled: u64,
    /// Storage jobs that were issued again.
    pub jobs_reissued: u64,
}

/// What the source says of itself.
pub(crate) fn source(
    t: &Timeline,
    trace: Option<TraceParent>,
    began_unix_us: u64,
) -> SourceTimeline {
    SourceTimeline {
        began_unix_us,
        traceparent: trace.map(|t| t.to_string()),
        connected_ms: at(t.connected),
        accepted_ms: at(t.accepted),
        pause_ms: at(t.pause),
        paused_ms: at(t.paused),
        io_cancelled_ms: at(t.io_cancelled),
        state_saved_ms: at(t.state_saved),
        final_acked_ms: at(t.final_acked),
        prepared_ms: at(t.prepared),
        relinquished_ms: at(t.relinquished),
        resumed_ms: at(t.resumed),
        settled_ms: at(t.settled),
        gave_up_ms: at(t.gave_up),
    }
}

/// What the destination says of itself, now that all is closed.
pub(crate) fn destination(
    core: &Destination,
    io: Option<DiskStats>,
    clock: &Clock,
) -> DestinationTimeline {
    let t = core.timeline();
    let (prepared, resumed) = core.spent();
    let us = |us: u64| us as f64 / 1e3;
    DestinationTimeline {
        began_unix_us: clock.began_unix_us(),
        migration_id: t.migration.map(|id| id.to_string()),
        traceparent: t.trace.map(|t| t.to_string()),
        connected_ms: at(t.connected),
        offered_ms: at(t.offered),
        machine_made_ms: at(t.machine_made),
        first_page_ms: at(t.first_page),
        all_pages_ms: at(t.all_pages),
        restored_ms: at(t.restored),
        prepared_ms: at(t.prepared),
        owner_ms: at(t.owner),
        resumed_ms: at(t.resumed),
        jobs_ended_ms: at(t.jobs_ended),
        fences_lifted_ms: at(t.fences_lifted),
        closed_ms: at(clock.now()),
        cancelled: t.cancelled,
        prepared_flush_ms: us(prepared.flush_us),
        owner_flush_ms: us(resumed.flush_us),
        resume_took_ms: us(resumed.resume_us),
        jobs_cancelled: t.jobs_cancelled,
        jobs_unsettled: t.jobs_unsettled,
        jobs_reissued: io.map_or(0, |io| io.reissued),
    }
}
