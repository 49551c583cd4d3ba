//! A disk in memory that does as it is told: the twin of storage, for tests.
//!
//! A [`MemoryDisk`] is the storage; every [`MemoryBackend`] opened on it is a session with it, as
//! of two hosts. Whoever holds the disk decides when operations land and how they end. A write
//! that was stalled takes its data from guest memory when it lands, as late as that is.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vmferry_protocol::storage::{Extent, JobEnd, JobId, JobKind};

use crate::{BlockBackend, Completion, FormerOwner, Geometry, Operation};

/// Only a test that fails waits for so long.
const LONG: Duration = Duration::from_secs(120);

/// A session with a [`MemoryDisk`]: the number of those opened before it.
pub type Session = usize;

/// An operation that is stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// Whose.
    pub session: Session,
    /// Which.
    pub id: JobId,
    /// What.
    pub kind: JobKind,
    /// Where.
    pub extent: Extent,
}

/// See the module's documentation.
#[derive(Clone)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    bytes: Vec<u8>,
    geometry: Geometry,
    stalling: bool,
    refuses_cancel: bool,
    fails: Option<i32>,
    former_owner_gone: bool,
    stays: Option<String>,
    sessions: Vec<SessionState>,
    stalled: Vec<(Session, Operation)>,
    landed: Vec<Stalled>,
}

struct SessionState {
    ready: Arc<OwnedFd>,
    ended: Vec<Completion>,
    held: bool,
    inherited: bool,
    open: bool,
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryDisk({} bytes)", self.state().bytes.len())
    }
}

impl MemoryDisk {
    /// A disk of `bytes` (a multiple of 512), all zero, that can do everything.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::with(Geometry {
            bytes,
            block_size: 4096,
            read_only: false,
            flush: true,
            discard: true,
            write_zeroes: true,
            max_transfer: 1 << 20,
        })
    }

    /// A disk like that, all zero.
    #[must_use]
    pub fn with(geometry: Geometry) -> Self {
        let state = State {
            bytes: vec![0; geometry.bytes as usize],
            geometry,
            stalling: false,
            refuses_cancel: false,
            fails: None,
            former_owner_gone: false,
            stays: None,
            sessions: Vec::new(),
            stalled: Vec::new(),
            landed: Vec::new(),
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.shared.changed.notify_all();
        result
    }

    /// Opens the next session.
    ///
    /// # Errors
    /// Of the kernel, which has no descriptor left.
    pub fn open(&self) -> std::io::Result<MemoryBackend> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let ready = Arc::new(eventfd(0, flags)?);
        let (session, geometry) = self.change(|state| {
            state.sessions.push(SessionState {
                ready: ready.clone(),
                ended: Vec::new(),
                held: false,
                inherited: false,
                open: true,
            });
            (state.sessions.len() - 1, state.geometry.clone())
        });
        Ok(MemoryBackend {
            disk: self.clone(),
            session,
            geometry,
            ready,
        })
    }

    /// Whether operations are stalled from here on. Those that are stalled stay so.
    pub fn stall(&self, stall: bool) {
        self.change(|state| state.stalling = stall);
    }

    /// Whether operations that are stalled cannot be taken back, from here on.
    pub fn refuse_cancel(&self, refuse: bool) {
        self.change(|state| state.refuses_cancel = refuse);
    }

    /// Operations that are not stalled fail with a number of errno from here on, or do not.
    pub fn fail(&self, errno: Option<i32>) {
        self.change(|state| state.fails = errno);
    }

    /// What [`BlockBackend::former_owner`] is, [`FormerOwner::Gone`] or there, from here on.
    pub fn set_former_owner_gone(&self, gone: bool) {
        self.change(|state| state.former_owner_gone = gone);
    }

    /// What stands against a move from here on.
    pub fn set_stays(&self, why: Option<&str>) {
        self.change(|state| state.stays = why.map(str::to_owned));
    }

    /// Operations that are stalled, in the order in which they came.
    #[must_use]
    pub fn stalled(&self) -> Vec<Stalled> {
        self.state().stalled()
    }

    /// Waits until just `n` operations are stalled; which they are.
    ///
    /// # Panics
    /// Where that does not come within two minutes.
    #[must_use]
    pub fn wait_stalled(&self, n: usize) -> Vec<Stalled> {
        self.wait(|state| state.stalled.len() == n).stalled()
    }

    /// Waits until just `n` operations have landed since the disk was made; which they are, in
    /// that order.
    ///
    /// # Panics
    /// As [`Self::wait_stalled`].
    #[must_use]
    pub fn wait_landed(&self, n: usize) -> Vec<Stalled> {
        self.wait(|state| state.landed.len() == n).landed.clone()
    }

    /// Waits until a session was closed, and with it everything that it had in flight ended.
    ///
    /// # Panics
    /// As [`Self::wait_stalled`].
    pub fn wait_closed(&self, session: Session) {
        drop(self.wait(|state| state.sessions.get(session).is_some_and(|s| !s.open)));
    }

    /// Whether a session is open, and whether it has inherited the disk.
    #[must_use]
    pub fn is_open(&self, session: Session) -> (bool, bool) {
        let of = |s: &SessionState| (s.open, s.inherited);
        self.state()
            .sessions
            .get(session)
            .map_or((false, false), of)
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let wait = &self.shared.changed;
        let (state, waited) = wait
            .wait_timeout_while(self.state(), LONG, |state| !until(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "the disk waits for what does not come");
        state
    }

    /// Has a stalled operation land, or fail with a number of errno. Returns whether there was one.
    pub fn release(&self, session: Session, id: JobId, fails: Option<i32>) -> bool {
        self.change(|state| {
            let is_it = |(s, op): &(Session, Operation)| *s == session && op.id == id;
            let Some(at) = state.stalled.iter().position(is_it) else {
                return false;
            };
            let (session, operation) = state.stalled.remove(at);
            state.land(session, &operation, fails);
            true
        })
    }

    /// Has everything land that is stalled, in order, and stalls no more.
    pub fn release_all(&self) {
        self.change(|state| {
            state.stalling = false;
            for (session, operation) in std::mem::take(&mut state.stalled) {
                state.land(session, &operation, None);
            }
        });
    }

    /// The storage ends a session: what is stalled there never lands. It ends as unknown where the
    /// session is held; otherwise it is asked for again, and stays stalled.
    pub fn end_session(&self, session: Session) {
        self.change(|state| {
            if !state.sessions.get(session).is_some_and(|s| s.held) {
                return;
            }
            for (_, operation) in state.take_stalled(session) {
                state.end(session, operation.id, JobEnd::Unknown);
            }
        });
    }

    /// What it is like.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.state().geometry.clone()
    }

    /// What the disk holds.
    ///
    /// # Panics
    /// Where there is no such range.
    #[must_use]
    pub fn content(&self, offset: u64, len: usize) -> Vec<u8> {
        let from = offset as usize;
        self.state().bytes[from..from + len].to_vec()
    }
}

impl State {
    fn stalled(&self) -> Vec<Stalled> {
        let stalled = |(session, op): &(Session, Operation)| named(*session, op);
        self.stalled.iter().map(stalled).collect()
    }

    fn take_stalled(&mut self, session: Session) -> Vec<(Session, Operation)> {
        let (taken, kept) = std::mem::take(&mut self.stalled)
            .into_iter()
            .partition(|(s, _)| *s == session);
        self.stalled = kept;
        taken
    }

    fn land(&mut self, session: Session, operation: &Operation, fails: Option<i32>) {
        let end = match fails {
            Some(errno) => JobEnd::Failed(errno),
            None => self.perform(operation),
        };
        self.landed.push(named(session, operation));
        self.end(session, operation.id, end);
    }

    fn perform(&mut self, operation: &Operation) -> JobEnd {
        let Extent { offset, len } = operation.extent;
        let range = offset as usize..offset.saturating_add(len) as usize;
        let Some(place) = self.bytes.get_mut(range) else {
            return JobEnd::Failed(libc::EINVAL);
        };
        match operation.kind {
            JobKind::Read => drop(operation.buffers.copy_in(0, place)),
            JobKind::Write => drop(operation.buffers.copy_out(0, place)),
            JobKind::Discard | JobKind::WriteZeroes { .. } => place.fill(0),
            JobKind::Flush => {}
        }
        JobEnd::Done
    }

    fn end(&mut self, session: Session, id: JobId, end: JobEnd) {
        if let Some(session) = self.sessions.get_mut(session) {
            session.ended.push(Completion { id, end });
            // Cannot be full.
            let _ = rustix::io::write(&session.ready, &1u64.to_ne_bytes());
        }
    }
}

fn named(session: Session, operation: &Operation) -> Stalled {
    Stalled {
        session,
        id: operation.id,
        kind: operation.kind,
        extent: operation.extent,
    }
}

/// A session with a [`MemoryDisk`].
pub struct MemoryBackend {
    disk: MemoryDisk,
    session: Session,
    geometry: Geometry,
    ready: Arc<OwnedFd>,
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBackend({})", self.session)
    }
}

impl MemoryBackend {
    fn of_session(&self, change: impl FnOnce(&mut SessionState)) {
        self.disk
            .change(|state| state.sessions.get_mut(self.session).map(change));
    }
}

impl BlockBackend for MemoryBackend {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, operation: Operation) {
        self.disk.change(|state| match state.stalling {
            true => state.stalled.push((self.session, operation)),
            false => state.land(self.session, &operation, state.fails),
        });
    }

    fn cancel(&mut self, id: JobId) {
        self.disk.change(|state| {
            let is_it = |(s, op): &(Session, Operation)| *s == self.session && op.id == id;
            if let Some(at) = state.stalled.iter().position(is_it)
                && !state.refuses_cancel
            {
                drop(state.stalled.remove(at));
                state.end(self.session, id, JobEnd::Cancelled);
            }
        });
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        self.of_session(|session| ended.append(&mut session.ended));
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn hold(&mut self, held: bool) {
        self.of_session(|session| session.held = held);
    }

    fn may_move(&self) -> Result<(), String> {
        match &self.disk.state().stays {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    fn inherit(&mut self) {
        self.of_session(|session| session.inherited = true);
    }

    fn former_owner(&mut self) -> FormerOwner {
        match self.disk.state().former_owner_gone {
            true => FormerOwner::Gone,
            false => FormerOwner::There,
        }
    }
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        self.disk.change(|state| {
            drop(state.take_stalled(self.session));
            if let Some(session) = state.sessions.get_mut(self.session) {
                session.open = false;
            }
        });
    }
}

#[cfg(test)]
mod tests;
