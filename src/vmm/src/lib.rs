//! The VM process: one machine, its control socket and its migrations.
//!
//! [`run`] is the process; [`client::VmmClient`] talks to one. Guest pages never pass through the
//! control socket: the source's process talks straight to the destination's.

pub mod api;
pub mod client;
pub mod ends;
mod events;
mod migrate;
pub mod past;
pub mod process;
mod random;
mod run;
mod server;
mod tracker;
mod vm;

pub use random::random_bits;
pub use run::{JOURNAL, RunError, RunOptions, SOCKET, run};
