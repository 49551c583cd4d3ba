//! Storage jobs of machines that moved.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Storage jobs of a machine's former host that have ended there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettledJobs {
    /// The migration by which the machine came.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub migration: String,
    /// They.
    #[schema(max_items = 4096)]
    pub jobs: Vec<SettledJob>,
}

/// A storage job that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettledJob {
    /// Which.
    #[serde(flatten)]
    pub key: JobName,
    /// How.
    pub end: SettledEnd,
}

/// A storage job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobName {
    /// Index of the disk in the machine's description.
    pub disk: u16,
    /// Number of the job.
    pub job: u64,
}

/// How a storage job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SettledEnd {
    /// As asked.
    Done,
    /// With an error, whose number this is.
    Failed(i32),
    /// It was taken back.
    Cancelled,
    /// Nobody knows; it will not happen any more.
    Unknown,
}

/// Storage jobs of whose end a host knows, and has it on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KnownJobs {
    /// They.
    pub jobs: Vec<JobName>,
}
