//! The NBD client against scripted bytes, scripted servers, and real ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../suite/mod.rs"]
mod suite;

mod peer;
mod rig;
mod servers;

mod garbage;
mod handshake;
mod nbd_server;
mod nbdkit;
mod opening;
mod qemu;
mod sessions;
mod tls;
mod transmission;
