//! Migrations, and what hosts say to each other about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmSpec;

/// A migration, as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationRequest {
    /// A peer's name, as in the configuration, or the URL of its API.
    #[schema(example = "host-b", pattern = "^[!-~]{1,512}$")]
    pub to: String,
    /// How, where it differs from the configuration.
    #[serde(default)]
    pub options: MigrationOptions,
    /// W3C trace context of whoever asks.
    #[serde(default)]
    #[schema(pattern = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    pub traceparent: Option<String>,
}

/// How a machine is moved. What is not said is as configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationOptions {
    /// `quic` or `tcp`.
    #[schema(pattern = "^(quic|tcp)$")]
    pub transport: Option<String>,
    /// Page streams, 1 to 64.
    #[schema(minimum = 1, maximum = 64)]
    pub streams: Option<u16>,
    /// `auto`, `raw`, `lz4`, `zstd[:LEVEL]`, `brotli[:LEVEL]`.
    #[schema(pattern = "^(auto|raw|lz4|zstd(:(-[1-5]|[0-9]))?|brotli(:[0-5])?)$")]
    pub codec: Option<String>,
    /// Most MiB of earlier versions of pages that are kept to send differences, with codec `auto`;
    /// 0 sends none.
    #[schema(minimum = 0, maximum = 65536)]
    pub delta_cache_mib: Option<u32>,
    /// `auto`, `wp-group`, `kvm-log`, `kvm-ring`, `wp-async`.
    #[schema(pattern = "^(auto|wp-group|kvm-log|kvm-ring|wp-async)$")]
    pub tracker: Option<String>,
    /// `auto`, or a size from `4k` to `32m`.
    #[schema(pattern = "^(auto|(4|8|16|32|64|128|256|512)k|(1|2|4|8|16|32)m)$")]
    pub group: Option<String>,
    /// How much of a writer's time it may be made to wait, in per cent.
    #[schema(minimum = 0, maximum = 100)]
    pub throttle_pct: Option<u8>,
    /// Limit in Mbit/s; 0 is none but the host's.
    #[schema(minimum = 0, maximum = 1000000)]
    pub link_mbit: Option<u64>,
    /// Longest blackout to accept, in milliseconds.
    #[schema(exclusive_minimum = 0, maximum = 3600000)]
    pub max_blackout_ms: Option<f64>,
    /// Fewest passes before the pause.
    #[schema(minimum = 1, maximum = 40)]
    pub min_passes: Option<u32>,
}

impl MigrationOptions {
    /// These; where something is not said, as in `others`.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        let words = |own: Option<String>, other: &Option<String>| own.or_else(|| other.clone());
        Self {
            transport: words(self.transport, &others.transport),
            streams: self.streams.or(others.streams),
            codec: words(self.codec, &others.codec),
            delta_cache_mib: self.delta_cache_mib.or(others.delta_cache_mib),
            tracker: words(self.tracker, &others.tracker),
            group: words(self.group, &others.group),
            throttle_pct: self.throttle_pct.or(others.throttle_pct),
            link_mbit: self.link_mbit.or(others.link_mbit),
            max_blackout_ms: self.max_blackout_ms.or(others.max_blackout_ms),
            min_passes: self.min_passes.or(others.min_passes),
        }
    }
}

/// A migration was begun, or waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStarted {
    /// Its id: 32 hexadecimal digits.
    pub id: String,
}

/// How a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    /// It waits for its turn.
    Queued,
    /// Both hosts look whether it can be.
    Preflight,
    /// It is under way.
    Running,
    /// The guest runs at the destination; storage is still at work for the source.
    Settling,
    /// The guest runs at the destination.
    Completed,
    /// Somebody cancelled; the guest runs at the source.
    Cancelled,
    /// The guest runs at the source.
    Failed,
    /// An operator has to find out where the guest may run.
    Undecided,
}

impl MigrationState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Preflight,
        Self::Running,
        Self::Settling,
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
        Self::Undecided,
    ];

    /// As the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preflight => "preflight",
            Self::Running => "running",
            Self::Settling => "settling",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Undecided => "undecided",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Cancelled | Self::Failed | Self::Undecided
        )
    }
}

/// This host's part in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The machine leaves.
    Outgoing,
    /// It comes.
    Incoming,
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The machine.
    pub vm: String,
    /// This host's part.
    pub direction: Direction,
    /// The other host.
    pub peer: String,
    /// How it is.
    pub state: MigrationState,
    /// Why it did not complete.
    pub reason: Option<String>,
    /// When it was asked for: milliseconds since 1970, UTC.
    pub asked_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How it is getting on, at the source.
    pub progress: Option<MigrationProgress>,
    /// The guest's pause, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// From its begin to its end, in milliseconds.
    pub total_ms: Option<f64>,
    /// W3C trace context of its spans.
    pub traceparent: Option<String>,
}

/// How a migration is getting on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationProgress {
    /// What is being done, in a word.
    pub phase: String,
    /// The pass, from 1.
    pub pass: u32,
    /// Pages of this pass still to go.
    pub pages_left: u64,
    /// Pages of this pass in all.
    pub pages_total: u64,
    /// Throughput on the wire, in bytes a second.
    pub bytes_per_second: f64,
    /// Bytes on the wire so far.
    pub bytes_wire: u64,
    /// Blackout of a switchover now, in milliseconds.
    pub predicted_blackout_ms: Option<f64>,
    /// Storage jobs that the destination waits for.
    pub jobs_unsettled: u64,
    /// How long writers have waited for write notifications, in milliseconds.
    pub stall_ms: f64,
    /// How long vCPUs have waited for a processor until the pause, summed, in milliseconds.
    #[serde(default)]
    pub run_delay_ms: f64,
    /// Passes until now, the one under way last; the oldest may be left out.
    #[serde(default)]
    pub passes: Vec<PassProgress>,
    /// Encoded bytes so far, by codec.
    #[serde(default)]
    pub bytes_by_codec: BTreeMap<String, u64>,
}

/// How a pass has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassProgress {
    /// From 1.
    pub pass: u32,
    /// Pages that may have changed before it; in the first all pages.
    pub pages_dirtied: u64,
    /// Pages whose content was sent.
    pub pages_sent: u64,
}

/// Something that stands against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where: `cpu`, `memory`, `disk`, `network`, `certificate`, `version`, `limit`, `state`.
    pub area: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// What a migration would be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Preflight {
    /// Everything that stands against it; none: it can be.
    pub problems: Vec<Problem>,
    /// Throughput between the hosts, as measured, in Mbit/s.
    pub measured_mbit: Option<f64>,
    /// How long it would take, in milliseconds.
    pub predicted_total_ms: Option<f64>,
    /// The guest's pause, in milliseconds.
    pub predicted_blackout_ms: Option<f64>,
    /// What the predictions rest on, in words.
    pub assumptions: Vec<String>,
    /// How far the other host's clock is ahead, in milliseconds.
    pub clock_ahead_ms: Option<f64>,
}

/// A machine that another host would send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    /// Its description.
    pub spec: VmSpec,
    /// Names of the processor features that its guest has seen.
    #[schema(max_items = 4096)]
    pub cpu_features: Vec<String>,
    /// Version of the software there.
    #[schema(max_length = 256)]
    pub software: String,
    /// Versions of the protocol that it speaks: oldest and newest.
    pub protocol: (u16, u16),
}

/// A host asks to send a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReceptionRequest {
    /// What would come.
    pub offer: Offer,
    /// The migration's id.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub migration: String,
    /// Name of the host that asks.
    #[schema(pattern = "^[!-~]{1,253}$")]
    pub from: String,
    /// `quic` or `tcp`.
    #[schema(pattern = "^(quic|tcp)$")]
    pub transport: String,
    /// Limit in Mbit/s; 0 is none.
    #[schema(minimum = 0, maximum = 1000000)]
    pub link_mbit: u64,
    /// W3C trace context.
    #[schema(pattern = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    pub traceparent: Option<String>,
}

/// A VM process waits for the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reception {
    /// Names it, to [`crate::control::Control::forget_reception`].
    pub id: String,
    /// Address and port of the VM process.
    #[schema(example = "10.0.0.2:49152")]
    pub address: String,
    /// The name that its certificate bears.
    pub server_name: String,
    /// The one-time secret of the migration.
    pub token: String,
}
