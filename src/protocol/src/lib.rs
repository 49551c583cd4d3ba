//! The migration protocol as pure state machines: no IO, no clocks, no threads.

#![forbid(unsafe_code)]

pub mod pages;

pub use pages::{PAGE_SIZE, PageRange};
