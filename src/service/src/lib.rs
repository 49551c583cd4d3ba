//! The host service: supervises VM processes, moves their machines to other hosts, and is asked
//! for all of it over one API.
//!
//! Its death harms no machine: VM processes go on by themselves, and are found again.
//! [`model`] is what the API speaks, [`control`] what a host can be asked for.

pub mod control;
pub mod model;
pub mod page;
