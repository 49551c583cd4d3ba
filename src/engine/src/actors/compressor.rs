//! `CompressorPool`: threads that protect, read and encode chunks.

use std::sync::Arc;

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_protocol::pending::Chunk;
use vmferry_protocol::source::SourceEvent;

use super::tracker::Live;
use crate::compression::Compression;
use crate::encode::{Encoded, Encoder, Frame};
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

/// Make a frame of this chunk, and give it to the page streams.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Encode {
    pub(crate) chunk: Chunk,
    /// Writes may come later, and must be noticed.
    pub(crate) protect: bool,
}

impl Handler<Encode> for Compressor {
    type Result = ();

    fn handle(&mut self, Encode { chunk, protect }: Encode, _: &mut SyncContext<Self>) {
        // Not while the link has enough to do, nor while processors have: a page that is read
        // later is younger.
        self.compression.link().wait_for_room();
        let _inside = self.compression.gate().enter();
        // After an abort nothing is protected any more: nobody would take it off again.
        let Some(_guard) = self.live.guard() else {
            return;
        };
        let protected = if protect {
            // A writer may wait for the same lock.
            self.helpers.undisturbed(|| self.encoder.protect(&chunk))
        } else {
            Ok(())
        };
        let encoded = protected.and_then(|()| self.helpers.work(|| self.encoder.encode(&chunk)));
        match encoded {
            Ok(Encoded::Unchanged(stats)) => {
                self.owner.do_send(Told(SourceEvent::ChunkUnchanged(stats)));
            }
            Ok(Encoded::Frame(frame)) => {
                // Counted before it goes, so that it is counted before it is acknowledged.
                self.owner
                    .do_send(Told(SourceEvent::ChunkSent(frame.stats)));
                let bytes = frame.stats.bytes_wire;
                self.compression.link().queue(bytes);
                // Never full: it holds a window of chunks. Closed: there is no connection.
                let _ = self.frames.try_send(frame);
            }
            Err(error) => {
                let detail = format!("guest pages could not be read: {error}");
                self.owner.do_send(Told(SourceEvent::Failed { detail }));
            }
        }
    }
}
