//! Traces and metrics: real migrations of both outcomes and neither, real exporters, collectors
//! that listen, and such as do not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod collector;
mod faulty;
mod local;
mod metrics;
mod outside;
mod sides;
mod tree;
