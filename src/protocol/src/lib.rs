//! The migration protocol as pure state machines: no IO, no clocks, no threads.
//!
//! [`source::Source`] and [`destination::Destination`] are told what has happened and say what to
//! do; a driver (the engine, or a simulator in virtual time) does it. Page contents never enter
//! this crate. docs/protocol.md describes the exchange and the bytes.

#![forbid(unsafe_code)]

pub mod destination;
pub mod errors;
pub mod ids;
pub mod message;
pub mod ownership;
pub mod pages;
pub mod pending;
pub mod policy;
pub mod source;
pub mod storage;
pub mod trace;
pub mod version;
pub mod wire;

pub use pages::{PAGE_SIZE, PageRange, PageSet, RamLayout};
