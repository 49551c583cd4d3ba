//! The supervisor: hosts in one process, with real VM processes.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

mod adoption;
mod deciding;
mod drains;
mod moves;
mod settling;
mod vms;
