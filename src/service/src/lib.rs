//! The host service: supervises VM processes, moves their machines to other hosts, and is asked
//! for all of it over one API.
//!
//! Its death harms no machine: VM processes go on by themselves, and are found again.
//! [`model`] is what the API speaks, [`control`] what a host can be asked for, [`host`] the one that
//! does it; [`api`] answers, [`client`] asks.

pub mod api;
pub mod client;
pub mod config;
pub mod control;
pub mod host;
pub mod model;
pub mod page;
pub mod rules;
pub mod serve;
pub mod systemd;
pub mod telemetry;
