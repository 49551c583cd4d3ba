//! When what happened at the destination. Plain data.

use crate::ids::{MigrationId, Time};
use crate::storage::{Fate, JobRecord};
use crate::trace::TraceParent;

/// Moments, in the driver's time; zero where not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The migration, once its source has shown the token.
    pub migration: Option<MigrationId>,
    /// The trace that the source says it belongs to.
    pub trace: Option<TraceParent>,
    /// The source's first connection.
    pub connected: Time,
    /// `Offer` arrived.
    pub offered: Time,
    /// The empty machine is made.
    pub machine_made: Time,
    /// The first chunk is in RAM.
    pub first_page: Time,
    /// All pages and the state are here.
    pub all_pages: Time,
    /// State is set.
    pub restored: Time,
    /// `prepared` is on disk.
    pub prepared: Time,
    /// `owner` is on disk.
    pub owner: Time,
    /// The vCPUs run.
    pub resumed: Time,
    /// The guest has been told how every storage job ended that came with it.
    pub jobs_ended: Time,
    /// The last fence is lifted: no write of the source is unsettled any more.
    pub fences_lifted: Time,
    /// Somebody cancelled.
    pub cancelled: bool,
    /// Storage jobs that came to be issued again.
    pub jobs_cancelled: u64,
    /// Storage jobs that came as writes that may still happen.
    pub jobs_unsettled: u64,
}

impl Timeline {
    pub(super) fn took_over(&mut self, jobs: &[JobRecord]) {
        let unsettled = jobs.iter().filter(|j| j.fate == Fate::Unsettled).count();
        self.jobs_unsettled = unsettled as u64;
        self.jobs_cancelled = (jobs.len() - unsettled) as u64;
    }
}
