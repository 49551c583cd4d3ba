//! One actor for each thing that can be waited for. Each is a thin shell: it does what a message
//! asks and answers with an event; what to do next is the protocol core's to say.
//!
//! Those that block (machine, tracker, compressors, journal) are `SyncArbiter`s with threads of
//! their own. Their mailboxes are bounded by what the core asks for at once: one operation, or a
//! window of chunks.

pub(crate) mod compressor;
pub(crate) mod io_journal;
pub(crate) mod machine;
pub(crate) mod reception;
pub(crate) mod tracker;
pub(crate) mod transport;

/// Answered when all that was asked before is done. For actors with one thread.
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub(crate) struct Settle;
