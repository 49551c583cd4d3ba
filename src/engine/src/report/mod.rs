//! The report of a migration: one plain structure, for people as text and for programs as JSON.
//!
//! Its field names are a promise: fields are added, never renamed. The guest's part is arithmetic
//! over heartbeats (see [`guest`]); everything else is counted by the engine.

pub mod guest;
mod text;
pub mod timeline;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmferry_tracker::auto::{Choice, Cost, Measured};

pub use guest::{GuestReport, Moments};
pub use text::render;
pub use timeline::{DestinationTimeline, SourceTimeline};

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportOutcome {
    /// The guest runs at the destination.
    Completed,
    /// Somebody cancelled; the guest runs at the source.
    Cancelled,
    /// Something failed; the guest runs at the source.
    Failed,
    /// The right to run was given up and the destination has not confirmed: nobody may resume
    /// the guest by guess.
    Undecided,
}

impl ReportOutcome {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Undecided => "undecided",
        }
    }
}

/// The parts of the blackout, in milliseconds. They sum to `blackout_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlackoutBreakdown {
    /// Stopping the vCPUs.
    pub pause: f64,
    /// Cancelling storage IO in flight.
    pub io_cancel: f64,
    /// Sending the last pages until the destination has them.
    pub final_pages: f64,
    /// Saving vCPU and device state.
    pub save_state: f64,
    /// Sending that state, as far as it was not sent beside the last pages.
    pub send_state: f64,
    /// Setting that state at the destination.
    pub restore: f64,
    /// Handing over the ownership: round trips and journal flushes.
    pub handover: f64,
    /// Starting the vCPUs at the destination.
    pub resume: f64,
}

impl BlackoutBreakdown {
    /// Sum of the parts, in milliseconds.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, ms)| ms).sum()
    }

    /// The parts by name, in the order in which they happen.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("pause", self.pause),
            ("io_cancel", self.io_cancel),
            ("save_state", self.save_state),
            ("final_pages", self.final_pages),
            ("send_state", self.send_state),
            ("restore", self.restore),
            ("handover", self.handover),
            ("resume", self.resume),
        ]
    }
}

/// Where the time of a migration's compressors went, summed over all of them, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompressorTimes {
    /// Protecting, reading, comparing and encoding pages, waiting for a processor while they could included.
    pub worked_ms: f64,
    /// Waiting for the link, before which enough was queued.
    pub for_link_ms: f64,
    /// Waiting, as no more of them were to work at a time.
    pub for_processors_ms: f64,
    /// Waiting for pages: as much was on its way as may be.
    pub for_pages_ms: f64,
}

/// One pass over the pages to send.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PassReport {
    /// From 1; the last is the one in the blackout.
    pub pass: u32,
    /// When it began, in milliseconds since the migration did.
    #[serde(default)]
    pub began_ms: f64,
    /// From the harvest until the destination had everything, in milliseconds.
    pub duration_ms: f64,
    /// Pages that may have changed.
    pub pages_considered: u64,
    /// Pages whose content travelled (zero pages do not).
    pub pages_sent: u64,
    /// Pages left out, as their content was what the destination had.
    pub pages_unchanged: u64,
    /// Pages left for the end.
    pub pages_deferred: u64,
    /// Those of them that change all the time; the others are in groups with them.
    #[serde(default)]
    pub pages_hot: u64,
    /// Write notifications that the guest paid for before this pass.
    pub notifications: u64,
    /// Processor time to read and compare pages, in milliseconds.
    #[serde(default)]
    pub read_ms: f64,
    /// Where the time of compressors went.
    #[serde(default)]
    pub compressors: CompressorTimes,
    /// Bytes on the page streams, before TLS.
    pub bytes_wire: u64,
    /// What each codec did; zero pages need none.
    #[serde(default)]
    pub codecs: BTreeMap<String, CodecReport>,
    /// For how many chunks the codec was chosen for what reason.
    #[serde(default)]
    pub choices: BTreeMap<String, u64>,
    /// Some of these choices one by one: at most 16, from all of the pass.
    #[serde(default)]
    pub sampled: Vec<ChoiceReport>,
    /// Whether the guest was paused.
    pub r#final: bool,
}

/// What a codec did in a pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodecReport {
    /// Chunks that it encoded.
    pub chunks: u64,
    /// Pages in them.
    pub pages: u64,
    /// Encoded bytes.
    pub bytes: u64,
    /// Encoded ÷ plain.
    pub ratio: f64,
    /// Processor time, summed over all threads, in milliseconds.
    pub processor_ms: f64,
}

/// A codec that was chosen for a chunk, what that rests on, and what it came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// In milliseconds since the migration began.
    pub at_ms: f64,
    /// What the chunk was sent as.
    pub codec: String,
    /// Why, in the words of [`PassReport::choices`].
    pub why: String,
    /// The kind of content that was seen.
    pub content: String,
    /// Pages with content.
    pub pages: u64,
    /// Encoded bytes.
    pub bytes: u64,
    /// Processor time that encoding took, in microseconds.
    pub processor_us: f64,
    /// What the choice was expected to cost, in microseconds of what everything waits for.
    pub cost_us: f64,
    /// What sending it raw was expected to cost.
    pub cost_raw_us: f64,
    /// What the link took, in Mbit/s; none before that was known.
    pub link_mbit: Option<f64>,
    /// How full the queue before the link was, 0 to 1.
    pub queue: f64,
    /// What a second of the link was worth, 0 to 1; the rest is what one of the compressors was.
    #[serde(default)]
    pub link_price: f64,
    /// What a chunk took a compressor beside compressing, in microseconds.
    #[serde(default)]
    pub beside_us: f64,
    /// Compressors that might work at a time.
    pub compressors: u64,
    /// Share of a processor that a compressor got.
    pub share: f64,
    /// Processors that nobody but compressors used.
    pub spare: f64,
    /// How much of the time the destination's page streams wanted a processor beyond 80 % of it, of
    /// late, 0 to 1: near 1 it is they that everything waits for.
    #[serde(default)]
    pub receiver: f64,
}

/// A decision of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// The pass after which it was taken.
    pub after_pass: u32,
    /// `continue`, `throttle`, `switch-over` or `give-up`.
    pub decision: String,
    /// Blackout of a switchover then, as predicted, in milliseconds.
    pub blackout_ms: f64,
    /// How much shorter another pass would make it, in milliseconds.
    pub saved_ms: f64,
    /// Guest work that another pass would cost, in milliseconds.
    pub cost_ms: f64,
}

/// What write notifications cost the guest during pre-copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NotificationReport {
    /// How many were answered.
    pub answered: u64,
    /// Pages made writable by them.
    pub pages_released: u64,
    /// Time from reading one until its writer could go on, summed, in milliseconds.
    pub stall_ms: f64,
    /// The longest of these, in milliseconds.
    pub longest_stall_ms: f64,
    /// How long writers were made to wait so that the migration converges, in milliseconds.
    pub throttled_ms: f64,
}

/// What notifications of a tracker cost a guest here, in nanoseconds a page that it rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrackerCost {
    /// Where it rewrites all pages of 2 MiB.
    pub dense: f64,
    /// Where it rewrites one page of 2 MiB.
    pub sparse: f64,
}

/// What became of storage IO that was in flight at the pause.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IoReport {
    /// Requests that the storage had when the vCPUs stood still.
    pub in_flight_at_pause: u64,
    /// Of these, such as ended by themselves before the rest was handed over.
    pub ended_in_pause: u64,
    /// Handed over, to be reissued at once.
    pub cancelled: u64,
    /// Handed over as writes that may still happen: what overlaps them waits until they are
    /// settled.
    pub unsettled: u64,
    /// Issued again by the destination.
    pub reissued: u64,
    /// Requests that the guest was told have failed, at the destination until the end.
    #[serde(default)]
    pub errors: u64,
    /// The longest that a range was kept closed until a write of the source was settled, in
    /// milliseconds.
    pub fence_wait_ms: f64,
    /// From the resumption until every vCPU had seen a request completed, in milliseconds.
    pub first_after_resume_ms: Option<f64>,
    /// The guest's verdict while writes were unsettled, where there were any.
    pub verify_unsettled: Option<String>,
    /// How long the journals of both sides took to be on disk, in milliseconds.
    pub journal_flush_ms: f64,
    /// From the guest's resumption until all unsettled writes were settled, in milliseconds; none
    /// where they are not.
    pub settled_ms: Option<f64>,
    /// Acknowledged writes that the disk does not hold, as the guest's ledger says; none where
    /// nobody asked.
    pub lost: Option<u64>,
    /// Requests that were completed more than once, as the guest says.
    pub duplicated: Option<u64>,
}

/// Why a tracker was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrackerChoice {
    /// In a line of words.
    pub why: String,
    /// By tracker, what was measured.
    pub ns_per_page: BTreeMap<String, TrackerCost>,
}

impl From<Cost> for TrackerCost {
    fn from(cost: Cost) -> Self {
        Self {
            dense: cost.dense_ns,
            sparse: cost.sparse_ns,
        }
    }
}

impl From<&Choice> for TrackerChoice {
    fn from(choice: &Choice) -> Self {
        let cost = |m: &Measured| {
            let cost = *m.cost.as_ref().ok()?;
            Some((m.kind.name().to_owned(), cost.into()))
        };
        Self {
            why: choice.why.clone(),
            ns_per_page: choice.measured.iter().filter_map(cost).collect(),
        }
    }
}

/// The whole report. Sizes in bytes, durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// 128 bits, in hexadecimal.
    pub migration_id: String,
    /// How it ended.
    pub outcome: ReportOutcome,
    /// Why, where it did not complete.
    pub reason: Option<String>,
    /// `kvm` or `process`.
    pub machine: String,
    /// `quic`, `tcp` or `memory`.
    pub transport: String,
    /// Page streams.
    pub streams: u16,
    /// The tracker used.
    pub tracker: String,
    /// Why that one, where nobody said which.
    #[serde(default)]
    pub tracker_choice: Option<TrackerChoice>,
    /// The codec asked for.
    pub codec: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Size of RAM.
    pub ram_bytes: u64,
    /// From the first message to the confirmation.
    pub total_ms: f64,
    /// The guest's pause, as the engine measured it.
    pub blackout_ms: Option<f64>,
    /// Its parts.
    pub blackout_breakdown_ms: Option<BlackoutBreakdown>,
    /// Largest gap in the guest's own heartbeat around the switchover.
    pub blackout_guest_ms: Option<f64>,
    /// What the policy predicted when it decided to switch over.
    pub blackout_predicted_ms: Option<f64>,
    /// The passes, in order.
    pub passes: Vec<PassReport>,
    /// The pass in which it was given up, as far as it came.
    #[serde(default)]
    pub pass_cut: Option<PassReport>,
    /// When things happened.
    #[serde(default)]
    pub timeline: SourceTimeline,
    /// Bytes of guest memory that the destination was told about.
    pub bytes_memory: u64,
    /// Bytes on the page streams, before TLS.
    pub bytes_wire: u64,
    /// Encoded bytes by codec really used.
    pub bytes_by_codec: BTreeMap<String, u64>,
    /// Pages that were zero.
    pub pages_zero: u64,
    /// Pages that were considered but unchanged.
    pub pages_unchanged: u64,
    /// What the policy decided after each pass, and the numbers it rests on.
    pub decisions: Vec<DecisionReport>,
    /// Memory that fingerprints of what was sent take at the source.
    #[serde(default)]
    pub fingerprint_bytes: u64,
    /// What write notifications cost the guest, where this process answers them.
    pub notifications: NotificationReport,
    /// How long vCPU threads waited for a processor until the pause, summed, in milliseconds.
    pub vcpu_run_delay_ms: f64,
    /// What the guest lost.
    pub guest: GuestReport,
    /// Storage IO at the switchover, where there was one and the machine has disks.
    #[serde(default)]
    pub io: Option<IoReport>,
    /// Most memory used beyond the guest's RAM and what the process used before, at the source.
    pub peak_extra_rss_bytes: u64,
    /// The same at the destination.
    pub peak_extra_rss_destination_bytes: Option<u64>,
}
