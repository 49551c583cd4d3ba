//! A disk that stands still at points, and logs every write before and after it.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use vmferry_block::{
    BlockBackend, Completion, FormerOwner, Geometry, JobEnd, JobId, JobKind, Operation,
};
use vmferry_guest::disk::stamp::{SECTORS, Stamp};

use super::Point;
use super::block::{BLOCK, Block};
use super::log::What;
use super::parts::Shared;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct WatchedDisk {
    inner: Box<dyn BlockBackend>,
    shared: Shared,
    held: bool,
    /// Writes in flight.
    writes: HashMap<JobId, Stamp>,
}

impl WatchedDisk {
    pub(super) fn over(inner: Box<dyn BlockBackend>, shared: Shared) -> Box<dyn BlockBackend> {
        Box::new(Self {
            inner,
            shared,
            held: false,
            writes: HashMap::new(),
        })
    }

    fn at(&self, point: Point) {
        if point.side() == self.shared.side {
            self.shared.gate.at(point);
        }
    }

    fn log_write(&mut self, operation: &Operation) {
        let number = operation.extent.offset / BLOCK as u64;
        let mut bytes = [0; BLOCK];
        let read = operation.buffers.copy_out(0, &mut bytes);
        let block = Block::from(&bytes);
        let first = block.sector(0).stamp;
        let aligned = operation.extent.offset.is_multiple_of(BLOCK as u64);
        let whole = aligned && operation.extent.len == BLOCK as u64 && read == BLOCK;
        let fits = |at: usize| block.is_of(at, number) && block.sector(at).stamp == first;
        let what = if whole && (0..SECTORS).all(fits) {
            self.writes.insert(operation.id, first);
            What::Submitted(first)
        } else {
            What::Odd(number)
        };
        self.shared.log.add(what);
    }
}

impl BlockBackend for WatchedDisk {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&mut self, operation: Operation) {
        self.at(Point::FirstSubmit);
        if operation.kind == JobKind::Write {
            self.log_write(&operation);
        }
        self.inner.submit(operation);
    }

    fn cancel(&mut self, id: JobId) {
        self.at(Point::CancelFirst);
        self.inner.cancel(id);
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        let before = ended.len();
        self.inner.reap(ended);
        for Completion { id, end } in &ended[before..] {
            let Some(stamp) = self.writes.remove(id) else {
                continue;
            };
            if *end == JobEnd::Done {
                self.shared.log.add(What::Done(stamp));
            }
            if self.held {
                self.at(Point::LateEnd);
            }
        }
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.inner.ready()
    }

    fn hold(&mut self, held: bool) {
        if held {
            self.at(Point::HoldBefore);
            self.shared.log.add(What::Held);
        }
        self.inner.hold(held);
        self.held = held;
        if held {
            self.at(Point::HoldAfter);
        }
    }

    fn may_move(&self) -> Result<(), String> {
        self.inner.may_move()
    }

    fn inherit(&mut self) {
        self.at(Point::Inherit);
        self.inner.inherit();
    }

    fn former_owner(&mut self) -> FormerOwner {
        self.at(Point::FormerOwner);
        self.inner.former_owner()
    }
}
