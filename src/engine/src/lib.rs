//! The migration engine: actors that drive the protocol core.
//!
//! [`source::start`] moves a machine away, [`destination::start`] receives one. The core decides;
//! the actors carry out: [`actors`] has one for each thing that can be waited for (the machine,
//! its tracker, the compressors, the journal, the connection). Pages pass between them in chunks of
//! 256 KiB, bounded by the source's window; control messages are few and small.

mod actors;
mod apply;
mod background;
mod buffers;
mod clock;
pub mod compression;
pub mod destination;
mod encode;
mod fingerprints;
mod line;
mod meter;
mod pages;
mod processors;
pub mod report;
pub mod source;

pub use apply::{ApplyError, RamWriter, Scratch, read_chunk};
pub use buffers::Buffers;
pub use encode::{EncodeError, Encoded, Encoder, Frame};
pub use fingerprints::{Fingerprints, KEY_BYTES};
pub use processors::budget::Budget;

/// What the names of the threads begin with that carry pages, in a process that runs migrations:
/// how much these have to do is told to the other side.
pub const IO_THREADS: &str = "vmferry-io";

/// Name and version of this software, as the other side is told.
pub const SOFTWARE: &str = concat!("vmferry ", env!("CARGO_PKG_VERSION"));
