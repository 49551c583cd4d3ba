//! Guest workloads: what a test guest does, and the payload that does it without a kernel.
//!
//! [`workload`] is compiled twice: into this crate, for native threads (the process machine), and
//! by the build script into a freestanding ELF ([`PAYLOAD`]) that boots by PVH and runs in ring 3.

pub mod abi;
pub mod disk;
pub mod params;
pub mod pattern;
pub mod platform;
pub mod share;
pub mod workload;

/// The payload: a static ELF with the PVH entry note. Every vCPU enters at the PVH entry, its
/// index in EDI.
pub static PAYLOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/payload.elf"));

#[cfg(test)]
mod tests;
