//! Hosts, drains, and what happens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Migration, MigrationOptions, MigrationState, Vm};

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// Name and version of the software.
    pub software: String,
    /// Versions of the protocol that it speaks: oldest and newest.
    pub protocol: (u16, u16),
    /// Why KVM machines cannot run here; none: they can.
    pub kvm_problem: Option<String>,
    /// Names of the processor features that guests may see.
    pub cpu_features: Vec<String>,
    /// Memory of the host, in MiB.
    pub memory_mib: u64,
    /// What is available of it, in MiB.
    pub available_mib: u64,
    /// Processors.
    pub processors: u32,
    /// Its limits.
    pub limits: Limits,
    /// Hosts that it knows, by name, with the URLs of their APIs.
    pub peers: BTreeMap<String, String>,
    /// Machines here.
    pub vms: u32,
    /// Migrations under way.
    pub migrations_running: u32,
    /// Migrations that wait for their turn.
    pub migrations_queued: u32,
    /// The host's clock: milliseconds since 1970, UTC.
    pub now_ms: u64,
}

/// What a host allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Migrations away from here at once.
    pub outgoing: u32,
    /// Migrations to here at once.
    pub incoming: u32,
    /// All outgoing migrations together, in Mbit/s; 0 is no limit.
    pub link_mbit: u64,
    /// Compressor threads of all migrations together; 0: as many as processors.
    pub compressors: u32,
    /// Machines.
    pub vms: u32,
    /// RAM of all machines together, in MiB; 0 is no limit but the host's memory.
    pub vm_ram_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outgoing: 4,
            incoming: 4,
            link_mbit: 0,
            compressors: 0,
            vms: 256,
            vm_ram_mib: 0,
        }
    }
}

/// All machines are to leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Where to: peers or URLs, taken in turn.
    #[schema(min_items = 1, max_items = 64)]
    pub to: Vec<String>,
    /// Migrations at once; as the host's limit where nothing is said.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 64)]
    pub parallel: Option<u32>,
    /// How.
    #[serde(default)]
    pub options: MigrationOptions,
}

/// How a machine fares in a drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainItem {
    /// The machine.
    pub vm: String,
    /// Where it goes.
    pub to: String,
    /// Its migration, once it was begun.
    pub migration: Option<String>,
    /// How that is; queued before.
    pub state: MigrationState,
    /// Why it did not complete.
    pub reason: Option<String>,
    /// The guest's pause, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// From begin to end, in milliseconds.
    pub total_ms: Option<f64>,
}

/// A drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// What was asked for.
    pub request: DrainRequest,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Whether nothing more will happen.
    pub over: bool,
    /// Every machine.
    pub items: Vec<DrainItem>,
}

/// Something has happened on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum ServiceEvent {
    /// A machine is there, or has changed.
    Vm(Vm),
    /// A machine is gone.
    VmGone(String),
    /// A migration is there, or has changed.
    Migration(Migration),
    /// A drain has changed.
    Drain(Drain),
}
