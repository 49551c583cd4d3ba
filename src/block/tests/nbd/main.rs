//! The NBD client against scripted bytes, scripted servers, and real ones.

#[path = "../common/mod.rs"]
mod common;
#[path = "../suite/mod.rs"]
mod suite;

mod peer;
mod rig;
mod servers;

mod garbage;
mod handshake;
mod nbdkit;
mod sessions;
mod transmission;
