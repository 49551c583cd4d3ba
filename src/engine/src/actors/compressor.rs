//! `CompressorPool`: threads that protect, read and encode chunks.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_protocol::pending::Chunk;
use vmferry_protocol::source::SourceEvent;

use super::tracker::Live;
use crate::compression::Compression;
use crate::compression::tally::Turn;
use crate::encode::{EncodeError, Encoded, Encoder, Frame};
use crate::processors::priority::Helpers;
use crate::source::Told;

/// A compressor thread.
#[derive(Debug)]
pub(crate) struct Compressor {
    pub(crate) encoder: Encoder,
    pub(crate) live: Live,
    pub(crate) helpers: Helpers,
    pub(crate) compression: Arc<Compression>,
    pub(crate) frames: async_channel::Sender<Frame>,
    pub(crate) owner: Recipient<Told>,
    /// When its last chunk was done, or it began.
    pub(crate) free_since: Duration,
}

impl Actor for Compressor {
    type Context = SyncContext<Self>;

    fn started(&mut self, _: &mut SyncContext<Self>) {
        self.helpers.join();
    }

    fn stopped(&mut self, _: &mut SyncContext<Self>) {
        self.helpers.leave();
    }
}

impl Compressor {
    /// None where the migration is off.
    fn encode(&mut self, chunk: &Chunk, last: bool) -> Option<Result<Encoded, EncodeError>> {
        let now = || self.compression.link().now();
        let came = now();
        // Not while the link has enough to do, nor while processors have: a page that is read
        // later is younger.
        self.compression.link().wait_for_room();
        let link_had_room = now();
        let _inside = self.compression.gate().enter();
        let began = now();
        // After an abort nothing is protected any more: nobody would take it off again.
        let _guard = self.live.guard()?;
        if !last {
            // A writer may wait for the same lock.
            let protected = self.helpers.undisturbed(|| self.encoder.protect(chunk));
            if let Err(error) = protected {
                return Some(Err(error));
            }
        }
        let encoded = self.helpers.work(|| self.encoder.encode(chunk, last));
        let done = now();
        let turn = Turn {
            for_pages: came.saturating_sub(self.free_since),
            for_link: link_had_room.saturating_sub(came),
            for_processors: began.saturating_sub(link_had_room),
            worked: done.saturating_sub(began),
        };
        self.free_since = done;
        let sent = matches!(encoded, Ok(Encoded::Frame(_)));
        self.compression.turn(chunk.pass, turn, sent);
        Some(encoded)
    }
}

/// Make a frame of this chunk, and give it to the page streams.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Encode {
    pub(crate) chunk: Chunk,
    /// The guest stands still: nothing will be written any more, and nothing sent again.
    pub(crate) last: bool,
}

impl Handler<Encode> for Compressor {
    type Result = ();

    fn handle(&mut self, Encode { chunk, last }: Encode, _: &mut SyncContext<Self>) {
        match self.encode(&chunk, last) {
            None => {}
            Some(Ok(Encoded::Unchanged(stats))) => {
                self.owner.do_send(Told(SourceEvent::ChunkUnchanged(stats)));
            }
            Some(Ok(Encoded::Frame(frame))) => {
                // Counted before it goes, so that it is counted before it is acknowledged.
                self.owner
                    .do_send(Told(SourceEvent::ChunkSent(frame.stats)));
                self.compression.link().queue(frame.stats.bytes_wire);
                // Never full: it holds a window of chunks. Closed: there is no connection.
                let _ = self.frames.try_send(frame);
            }
            Some(Err(error)) => {
                let detail = format!("guest pages could not be read: {error}");
                self.owner.do_send(Told(SourceEvent::Failed { detail }));
            }
        }
    }
}
