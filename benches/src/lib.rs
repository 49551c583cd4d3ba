//! Benchmarks.

pub mod transport;
