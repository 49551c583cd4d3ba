//! A disk's operations on their way through sessions: pure bookkeeping.
//!
//! An operation is one *piece* or several (a server takes only so much at once). A piece is
//! *queued*, or *out* in a session, where its bytes may have been sent, or it is over. A piece
//! that was out when its session ended for certain is queued again, before all others; while
//! held it is *kept*, and its operation ends as unknown once no other piece of it is out.

use std::collections::{HashMap, VecDeque};

use vmferry_protocol::storage::{Extent, JobEnd, JobId, JobKind};

use crate::{Completion, Geometry, Operation};

/// Most bytes that one trim or zeroing asks for.
const MAX_RANGE: u64 = 1 << 30;

/// A part of an operation that fits one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) job: JobId,
    pub(super) kind: JobKind,
    pub(super) extent: Extent,
}

#[derive(Debug)]
struct Job {
    operation: Operation,
    /// Pieces that are not over.
    pieces: u32,
    /// Pieces out in sessions.
    out: u32,
    /// A server has seen something of it.
    seen: bool,
    error: Option<i32>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Jobs {
    geometry: Geometry,
    jobs: HashMap<JobId, Job>,
    queue: VecDeque<Piece>,
    kept: Vec<Piece>,
    held: bool,
    /// Nothing else is queued; what is not out is forgotten.
    closing: bool,
    ended: Vec<Completion>,
}

impl Jobs {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            jobs: HashMap::new(),
            queue: VecDeque::new(),
            kept: Vec::new(),
            held: false,
            closing: false,
            ended: Vec::new(),
        }
    }

    /// Operations that have ended, to be taken.
    pub(super) fn ended(&mut self) -> &mut Vec<Completion> {
        &mut self.ended
    }

    /// Whether something waits to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Copies a write's bytes from `offset` of the disk on into `out`.
    pub(super) fn copy_out(&self, id: JobId, offset: u64, out: &mut [u8]) {
        if let Some(Job { operation, .. }) = self.jobs.get(&id) {
            let from = offset - operation.extent.offset;
            operation.buffers.copy_out(from, out);
        }
    }

    /// Copies bytes from `offset` of the disk on to where a read wants them; those that it has
    /// not asked for, nowhere.
    pub(super) fn copy_in(&self, id: JobId, offset: u64, bytes: &[u8]) {
        if let Some(Job { operation, .. }) = self.jobs.get(&id) {
            let before = operation.extent.offset.saturating_sub(offset);
            let wanted = bytes.get(before as usize..).unwrap_or_default();
            let at = offset + before - operation.extent.offset;
            // Ends with the buffers.
            operation.buffers.copy_in(at, wanted);
        }
    }

    /// Takes an operation: queues it, or ends it at once if there is nothing to ask a server for.
    pub(super) fn submit(&mut self, operation: Operation) {
        let Operation {
            id, kind, extent, ..
        } = operation;
        if let Some(end) = self.ends_at_once(&operation) {
            self.ended.push(Completion { id, end });
            return;
        }
        let block = u64::from(self.geometry.block_size);
        let start = extent.offset / block * block;
        let end = extent.end().next_multiple_of(block);
        self.queue.push_back(Piece {
            job: id,
            kind,
            extent: Extent::new(start, end - start),
        });
        let job = Job {
            operation,
            pieces: 1,
            out: 0,
            seen: false,
            error: None,
        };
        self.jobs.insert(id, job);
    }

    fn ends_at_once(&self, operation: &Operation) -> Option<JobEnd> {
        let Operation { kind, extent, .. } = operation;
        let transfers = matches!(kind, JobKind::Read | JobKind::Write);
        let taken = match kind {
            JobKind::Flush if !self.geometry.flush => return Some(JobEnd::Done),
            JobKind::Flush | JobKind::Read | JobKind::Write => true,
            JobKind::Discard => self.geometry.discard,
            JobKind::WriteZeroes { .. } => self.geometry.write_zeroes,
        };
        if kind.changes_disk() && self.geometry.read_only {
            return Some(JobEnd::Failed(libc::EROFS));
        }
        if !taken {
            return Some(JobEnd::Failed(libc::EOPNOTSUPP));
        }
        // A change of less than a block is not taken; a read is widened.
        let grain = match kind.changes_disk() {
            true => u64::from(self.geometry.block_size),
            false => 512,
        };
        let amiss = !extent.is_within(self.geometry.bytes)
            || !(extent.offset | extent.len).is_multiple_of(grain)
            || transfers && operation.buffers.len() != extent.len
            || self.jobs.contains_key(&operation.id);
        if amiss {
            return Some(JobEnd::Failed(libc::EINVAL));
        }
        (*kind != JobKind::Flush && extent.len == 0).then_some(JobEnd::Done)
    }

    /// Takes an operation back, if no server has seen anything of it, or it only looks and no
    /// server has it.
    pub(super) fn cancel(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get(&id)
            && job.out == 0
            && (!job.seen || !job.operation.kind.changes_disk())
        {
            self.remove(id, JobEnd::Cancelled);
        }
    }

    /// See [`BlockBackend::hold`](crate::BlockBackend::hold). Without a session, what a server
    /// has seen ends as unknown now.
    pub(super) fn hold(&mut self, held: bool, sessions: usize) {
        self.held = held;
        if held {
            self.strand(sessions);
        } else {
            self.requeue_kept();
        }
    }

    /// While held and without a session, whatever a server has seen and none has now is unknown.
    pub(super) fn strand(&mut self, sessions: usize) {
        if !self.held || sessions > 0 {
            return;
        }
        let stranded = self.jobs.iter().filter(|(_, j)| j.seen && j.out == 0);
        let stranded: Vec<JobId> = stranded.map(|(id, _)| *id).collect();
        for id in stranded {
            self.remove(id, JobEnd::Unknown);
        }
    }

    /// Nobody listens any more: what is not out is forgotten.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.queue.clear();
        self.kept.clear();
        self.jobs.retain(|_, job| job.out > 0);
    }

    /// The next piece to send, of at most `max_payload` bytes of data. It is out from now on.
    pub(super) fn next(&mut self, max_payload: u32) -> Option<Piece> {
        let first = self.queue.front_mut()?;
        let Some(job) = self.jobs.get_mut(&first.job) else {
            // Not to be: a piece goes with its job.
            self.queue.pop_front();
            return None;
        };
        let most = match first.kind {
            JobKind::Read | JobKind::Write => u64::from(max_payload),
            _ => MAX_RANGE,
        };
        job.out += 1;
        let mut piece = *first;
        if piece.extent.len > most {
            job.pieces += 1;
            piece.extent.len = most;
            first.extent = Extent::new(first.extent.offset + most, first.extent.len - most);
        } else {
            self.queue.pop_front();
        }
        Some(piece)
    }

    /// Takes back a piece of which nothing was sent.
    pub(super) fn unsend(&mut self, piece: Piece) {
        if let Some(job) = self.jobs.get_mut(&piece.job) {
            job.out -= 1;
            self.queue.push_front(piece);
            self.forget_if_closing(piece.job);
        }
    }

    /// A server says that a piece is over.
    pub(super) fn done(&mut self, piece: Piece, error: Option<i32>) {
        let Some(job) = self.jobs.get_mut(&piece.job) else {
            return;
        };
        job.out -= 1;
        job.pieces -= 1;
        job.seen = true;
        job.error = job.error.or(error);
        if job.pieces == 0 {
            let end = job.error.map_or(JobEnd::Done, JobEnd::Failed);
            self.remove(piece.job, end);
        } else {
            self.end_kept(piece.job);
            self.forget_if_closing(piece.job);
        }
    }

    /// The sessions of these pieces have ended for certain, or do not matter to them.
    pub(super) fn lost(&mut self, pieces: impl DoubleEndedIterator<Item = Piece>) {
        for piece in pieces.rev() {
            let Some(job) = self.jobs.get_mut(&piece.job) else {
                continue;
            };
            job.out -= 1;
            job.seen = true;
            if self.held {
                self.kept.push(piece);
                self.end_kept(piece.job);
            } else {
                self.queue.push_front(piece);
            }
            self.forget_if_closing(piece.job);
        }
    }

    /// Fails everything that waits: there are sessions, and they are of no use.
    pub(super) fn fail_waiting(&mut self, errno: i32) {
        let waiting: Vec<JobId> = self.queue.iter().map(|piece| piece.job).collect();
        for id in waiting {
            if self.jobs.get(&id).is_some_and(|job| job.out == 0) {
                self.remove(id, JobEnd::Failed(errno));
            }
        }
    }

    /// Ends an operation as unknown that has lost a piece while held, once nothing is out.
    fn end_kept(&mut self, id: JobId) {
        let nothing_out = self.jobs.get(&id).is_some_and(|job| job.out == 0);
        if nothing_out && self.kept.iter().any(|piece| piece.job == id) {
            self.remove(id, JobEnd::Unknown);
        }
    }

    fn requeue_kept(&mut self) {
        for piece in self.kept.drain(..) {
            self.queue.push_front(piece);
        }
    }

    fn forget_if_closing(&mut self, id: JobId) {
        if self.closing {
            self.queue.clear();
            self.kept.clear();
            if self.jobs.get(&id).is_some_and(|job| job.out == 0) {
                self.jobs.remove(&id);
            }
        }
    }

    fn remove(&mut self, id: JobId, end: JobEnd) {
        if let Some(job) = self.jobs.remove(&id) {
            if job.pieces > 0 {
                self.queue.retain(|piece| piece.job != id);
                self.kept.retain(|piece| piece.job != id);
            }
            self.ended.push(Completion { id, end });
        }
    }
}

#[cfg(test)]
mod tests;
