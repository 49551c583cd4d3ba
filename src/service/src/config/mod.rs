//! A host's configuration: a TOML file, and environment variables that go before it.
//!
//! The types in here are all there is to it: what the file may say, what it means where nothing is
//! said, and what `config/host.toml` explains comes from them. A key's path joined by `__` behind
//! `VMFERRY_`, in capitals, is its variable: `VMFERRY_API__LISTEN` is `listen` of `[api]`. Hyphens in
//! names of peers are `_` there.

mod check;
mod fields;
mod keys;
mod load;
mod problem;
mod read;
mod reload;
mod render;
#[cfg(test)]
mod tests;
mod types;

pub use load::Source;
pub use problem::{ConfigProblem, ConfigProblems, Position};
pub use reload::{Change, Difference, reload, take_over, watch_limits};
pub use render::{effective, host_toml};
pub use types::{Api, Config, Host, Log, LogFormat, Migration, Peer, Telemetry, Tls, built_in};
