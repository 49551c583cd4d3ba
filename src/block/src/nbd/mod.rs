//! Disks on NBD servers.

mod backend;
mod connection;
mod dial;
mod jobs;
pub mod proto;
mod session;
mod tls;
pub mod uri;
mod worker;

pub use backend::{NbdBackend, open};
