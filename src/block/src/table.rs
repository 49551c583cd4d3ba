//! The table of a disk's jobs: where each of them is, and which have to wait.
//!
//! Pure: it is told what has happened, and [`Table::poll`] says what to do, until nothing is
//! left, in order. A job is *queued* until nothing stands before it, *submitted* until its end is
//! known, and then *completed*, once. Its life across a handover:
//!
//! - Source: [`Table::hold`] has everything in flight cancelled; what ends until
//!   [`Table::hand_over`] ends as usual; what is left is handed over, *cancelled* or *unsettled*.
//!   Late ends of unsettled jobs come out as [`Action::Settled`]. [`Table::release`] takes
//!   everything back: what has ended meanwhile is completed, what was cancelled is submitted again.
//! - Destination: [`Table::adopt`] takes the jobs; an unsettled one puts a *fence* around its
//!   range. [`Table::release`] reissues what no fence keeps back. [`Table::settled`] lifts a fence:
//!   a job that is known to have happened completes, any other is issued (again).
//!
//! A job waits while it overlaps a fence, or a job that waits and came before it, unless neither
//! changes the disk. Flushes never wait: a flush concerns what was acknowledged, and nothing that
//! waits was.

use std::collections::{BTreeMap, VecDeque};

use thiserror::Error;
use vmferry_protocol::storage::{Extent, Fate, JobEnd, JobId, JobKind};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Hand it to the backend.
    Submit(JobId),
    /// Ask the backend to take it back.
    Cancel(JobId),
    /// Tell the guest. The job is gone from the table.
    Complete {
        /// Which.
        id: JobId,
        /// The device's own.
        tag: T,
        /// `Done` or `Failed`.
        end: JobEnd,
        /// It came from another host, whose journal and ours know it.
        adopted: bool,
    },
    /// It was handed over as unsettled, and will not change the disk any more: tell the new owner.
    Settled {
        /// Which.
        id: JobId,
        /// How it ended.
        end: JobEnd,
    },
}

/// A job that is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver<T> {
    /// Its name, for good.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Where.
    pub extent: Extent,
    /// What is known of it.
    pub fate: Fate,
    /// The device's own.
    pub tag: T,
}

/// Why jobs cannot be adopted: whoever handed them over is wrong, or hostile.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AdoptError {
    /// Two jobs of one name, or one that is yet to be given.
    #[error("job {0:?} cannot be: the number is not one that was given once")]
    Number(JobId),
    /// The table is in use already.
    #[error("this disk has had jobs already")]
    InUse,
}

/// Whether jobs go their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// They do.
    Open,
    /// Nothing is submitted; everything in flight was asked to end.
    Holding,
    /// The jobs are another host's, unless they are taken back.
    HandedOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Submitted,
    /// Taken back from the backend.
    Cancelled,
    /// Ended after it was handed over.
    Ended(JobEnd),
}

#[derive(Debug)]
struct Job<T> {
    kind: JobKind,
    extent: Extent,
    state: State,
    tag: T,
    adopted: bool,
}

/// See the module's documentation. `T` is what the device wants back with a completion.
#[derive(Debug)]
pub struct Table<T> {
    mode: Mode,
    next: u64,
    jobs: BTreeMap<JobId, Job<T>>,
    fences: BTreeMap<JobId, Extent>,
    actions: VecDeque<Action<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            mode: Mode::Open,
            next: 0,
            jobs: BTreeMap::new(),
            fences: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }
}

impl<T: Clone> Table<T> {
    /// What is to be done next, if anything.
    pub fn poll(&mut self) -> Option<Action<T>> {
        self.actions.pop_front()
    }

    /// The guest asks for something.
    pub fn request(&mut self, kind: JobKind, extent: Extent, tag: T) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        self.jobs.insert(
            id,
            Job {
                kind,
                extent,
                state: State::Queued,
                tag,
                adopted: false,
            },
        );
        if self.mode == Mode::Open {
            self.submit_unless_kept_back(id);
        }
        id
    }

    /// The backend says how a submitted job ended.
    pub fn finished(&mut self, id: JobId, end: JobEnd) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state != State::Submitted {
            return;
        }
        let happened = matches!(end, JobEnd::Done | JobEnd::Failed(_));
        match self.mode {
            Mode::HandedOver => {
                job.state = State::Ended(end);
                if job.kind.changes_disk() {
                    self.actions.push_back(Action::Settled { id, end });
                }
            }
            _ if happened => self.complete(id, end),
            Mode::Holding => job.state = State::Cancelled,
            Mode::Open => self.submit(id),
        }
    }

    /// Nothing more is submitted, and what is in flight is to be cancelled.
    pub fn hold(&mut self) {
        if self.mode != Mode::Open {
            return;
        }
        self.mode = Mode::Holding;
        let in_flight = self
            .jobs
            .iter()
            .filter(|(_, j)| j.state == State::Submitted);
        let cancel = in_flight.map(|(id, _)| Action::Cancel(*id));
        self.actions.extend(cancel);
    }

    /// Everything that has not ended is another host's from now on, unless it is taken back.
    pub fn hand_over(&mut self) -> Vec<HandedOver<T>> {
        self.mode = Mode::HandedOver;
        let handed_over = |(id, job): (&JobId, &Job<T>)| HandedOver {
            id: *id,
            kind: job.kind,
            extent: job.extent,
            fate: match job.state {
                State::Submitted if job.kind.changes_disk() => Fate::Unsettled,
                _ => Fate::Cancelled,
            },
            tag: job.tag.clone(),
        };
        self.jobs.iter().map(handed_over).collect()
    }

    /// Takes jobs of another host into an empty table, whose next number is to be `next`. They
    /// wait for [`Self::release`].
    ///
    /// # Errors
    /// [`AdoptError`]; the table is as it was.
    pub fn adopt(
        &mut self,
        next: u64,
        jobs: impl IntoIterator<Item = HandedOver<T>>,
    ) -> Result<(), AdoptError> {
        if !self.jobs.is_empty() || self.next != 0 {
            return Err(AdoptError::InUse);
        }
        let (mut adopted, mut fences) = (BTreeMap::new(), BTreeMap::new());
        for job in jobs {
            let there = adopted.insert(
                job.id,
                Job {
                    kind: job.kind,
                    extent: job.extent,
                    state: State::Queued,
                    tag: job.tag,
                    adopted: true,
                },
            );
            if job.id.0 >= next || there.is_some() {
                return Err(AdoptError::Number(job.id));
            }
            if job.fate == Fate::Unsettled {
                fences.insert(job.id, job.extent);
            }
        }
        self.mode = Mode::Holding;
        (self.next, self.jobs, self.fences) = (next, adopted, fences);
        Ok(())
    }

    /// Puts up a fence for a job of another host that is known from the journal only.
    pub fn fence(&mut self, id: JobId, extent: Extent) {
        self.next = self.next.max(id.0.saturating_add(1));
        self.fences.insert(id, extent);
    }

    /// Jobs go their way (again): at the source all is taken back, at the destination reissued.
    pub fn release(&mut self) {
        self.mode = Mode::Open;
        let ended: Vec<(JobId, State)> = self.jobs.iter().map(|(id, j)| (*id, j.state)).collect();
        for (id, state) in ended {
            match state {
                State::Ended(end @ (JobEnd::Done | JobEnd::Failed(_))) => self.complete(id, end),
                State::Ended(_) | State::Cancelled => self.set(id, State::Queued),
                State::Queued | State::Submitted => {}
            }
        }
        self.pump();
    }

    /// An unsettled job of the former owner will not change the disk any more. Returns whether
    /// there was a fence for it.
    pub fn settled(&mut self, id: JobId, end: JobEnd) -> bool {
        let Some(_) = self.fences.remove(&id) else {
            return false;
        };
        let waits = self.jobs.get(&id).is_some_and(|j| j.state == State::Queued);
        match end {
            JobEnd::Done | JobEnd::Failed(_) if waits => self.complete(id, end),
            // Known to the journal only, or to be issued once more.
            _ => {}
        }
        if self.mode == Mode::Open {
            self.pump();
        }
        true
    }

    /// Ranges that wait for the former owner, by job.
    #[must_use]
    pub fn fences(&self) -> &BTreeMap<JobId, Extent> {
        &self.fences
    }

    /// Number of the next job.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.next
    }

    /// Jobs that have not been completed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Jobs that the backend has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let submitted = |j: &&Job<T>| j.state == State::Submitted;
        self.jobs.values().filter(submitted).count()
    }

    /// Jobs that wait for a fence to be lifted.
    #[must_use]
    pub fn kept_back(&self) -> usize {
        match self.mode {
            Mode::Open => self.len() - self.in_flight(),
            _ => 0,
        }
    }

    /// What a job is, while it is in the table.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<(JobKind, Extent, &T)> {
        self.jobs.get(&id).map(|j| (j.kind, j.extent, &j.tag))
    }

    fn set(&mut self, id: JobId, state: State) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = state;
        }
    }

    fn submit(&mut self, id: JobId) {
        self.set(id, State::Submitted);
        self.actions.push_back(Action::Submit(id));
    }

    fn complete(&mut self, id: JobId, end: JobEnd) {
        if let Some(job) = self.jobs.remove(&id) {
            self.actions.push_back(Action::Complete {
                id,
                tag: job.tag,
                end,
                adopted: job.adopted,
            });
        }
    }

    /// Submits all that nothing keeps back any more, oldest first.
    fn pump(&mut self) {
        let queued = self.jobs.iter().filter(|(_, j)| j.state == State::Queued);
        let queued: Vec<JobId> = queued.map(|(id, _)| *id).collect();
        for id in queued {
            self.submit_unless_kept_back(id);
        }
    }

    fn submit_unless_kept_back(&mut self, id: JobId) {
        if !self.is_kept_back(id) {
            self.submit(id);
        }
    }

    fn is_kept_back(&self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return true;
        };
        if self.fences.values().any(|f| f.overlaps(&job.extent)) {
            return true;
        }
        // Without fences nothing waits.
        !self.fences.is_empty()
            && self.jobs.range(..id).any(|(_, before)| {
                before.state == State::Queued
                    && before.extent.overlaps(&job.extent)
                    && (before.kind.changes_disk() || job.kind.changes_disk())
            })
    }
}

#[cfg(test)]
mod tests;
