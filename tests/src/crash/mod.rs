//! Real VM processes that are killed in the middle of a switchover.
//!
//! A run has two VM processes made of the product's own parts ([`main`], the binary `faulty-vm`),
//! a TCP relay between them and one disk image for both. Around the traits for journal, machine
//! and disk are decorators with named [`Point`]s: at one of them a process stands still and says
//! so, and the harness kills it, or its peer, or cuts the connection. The disk's decorator keeps a
//! log of all writes, which survives any kill; [`check`] finds out from it whether the image is as
//! it must be, even where the guest has died. [`run()`] does all that for a [`Case`].

mod block;
pub mod check;
mod child;
mod disk;
mod gate;
mod lab;
pub mod log;
mod parts;
mod plan;
mod point;
pub mod relay;
mod run;
mod talk;
mod well;

pub use child::main;
pub use plan::Case;
pub use point::{Point, Side, Victim};
pub use run::{Keys, Seen, Where, run};

/// Names of the hosts, as in their certificates.
const SOURCE_HOST: &str = "host-a";
const DESTINATION_HOST: &str = "host-b";
