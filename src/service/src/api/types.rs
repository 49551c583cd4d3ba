//! What the API speaks beyond [`crate::model`]: problems, verdicts, the frames of the event stream.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Drain, Migration, ServiceEvent, Vm};

/// Why a request was not carried out (RFC 9457), as `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// What kind of problem, for programs: `urn:vmferry:problem:` and a word.
    #[serde(rename = "type", default = "blank")]
    #[schema(example = "urn:vmferry:problem:not-found")]
    pub kind: String,
    /// The same, for people.
    #[serde(default)]
    #[schema(example = "There is no such thing")]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong in this case, and what to do.
    #[serde(default)]
    pub detail: String,
    /// Path of the request.
    #[serde(default)]
    pub instance: String,
}

fn blank() -> String {
    "about:blank".to_owned()
}

/// What the built-in workload has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// In its words.
    pub verdict: String,
}

/// A user vouches for the end of a former host's writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettleRequest {
    /// Nobody but this host writes to the machine's disks any more; somebody has made sure of it.
    pub nobody_else_writes: bool,
}

/// Writes that are taken as done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settled {
    /// How many.
    pub writes: u64,
}

/// What a sink has swallowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sunk {
    /// How many bytes.
    pub bytes: u64,
}

/// Whether the service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Everything there is when an event stream begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// All machines.
    pub vms: Vec<Vm>,
    /// All migrations that are remembered, newest first.
    pub migrations: Vec<Migration>,
    /// The drain under way, or the last one.
    pub drain: Option<Drain>,
}

/// Events that a reader was too slow for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lagged {
    /// How many.
    pub missed: u64,
}

/// One event of `GET /v1/events`, as its `data`; its `kind` is the event's name too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StreamEvent {
    /// First and last of a stream.
    Frame(StreamFrame),
    /// Something has happened.
    Change(ServiceEvent),
}

/// How an event stream begins, and how it ends for a reader that is too slow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum StreamFrame {
    /// The first event.
    Snapshot(Snapshot),
    /// The last one: the reader was too slow; let it connect again, for a new snapshot.
    Lagged(Lagged),
}
