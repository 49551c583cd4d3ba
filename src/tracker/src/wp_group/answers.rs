//! Which write faults are answered at once, and which wait. The thread that reads them and waits is
//! elsewhere; kernel and clock are passed in.
//!
//! A release wakes whoever waits for one of its pages (man ioctl_userfaultfd,
//! UFFDIO_WRITEPROTECT), so it answers all of their faults: none of them is answered again, as
//! that would release pages that may have been protected anew. Nothing but this releases pages
//! while they are tracked.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmferry_memory::MemoryError;
use vmferry_protocol::PageRange;

use super::groups::{ArmError, Groups, Released};
use super::pace::Pace;
use crate::Throttle;
use crate::sys::MESSAGES_A_READ;

/// What the faults cost, since the tracker was started.
#[derive(Debug, Default)]
pub(super) struct Costs {
    pub(super) faults: AtomicU64,
    pub(super) pages: AtomicU64,
    /// From when the fault was read to when its writer could go on.
    pub(super) stall_ns: AtomicU64,
    pub(super) longest_ns: AtomicU64,
    /// How long writers were made to wait, each by itself, on top of that.
    pub(super) throttled_ns: AtomicU64,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Costs {
    /// From the beginning.
    pub(super) fn reset(&self) {
        for counter in [
            &self.faults,
            &self.pages,
            &self.stall_ns,
            &self.longest_ns,
            &self.throttled_ns,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, pages: u64, stall: Duration) {
        let ns = nanos(stall);
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.stall_ns.fetch_add(ns, Ordering::Relaxed);
        self.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }

    fn add_throttled(&self, waited: Duration) {
        self.throttled_ns
            .fetch_add(nanos(waited), Ordering::Relaxed);
    }
}

/// What answering needs of the world.
pub(super) trait Kernel {
    /// Time since some beginning.
    fn now(&self) -> Duration;

    /// Takes the protection of `pages` off, and wakes whoever waits for one of them.
    fn release(&self, pages: PageRange) -> io::Result<()>;
}

/// A writer that is made to wait.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    writer: u32,
    /// What it writes to.
    page: PageRange,
    /// What it waits for: charged once, and released as one.
    group: PageRange,
    since: Duration,
    due: Duration,
}

/// Faults that may wait at a time without memory being taken: more than a VM has vCPUs.
const WAITING: usize = 64;

/// The faults in hand.
pub(super) struct Answers<'a> {
    groups: &'a Groups,
    costs: &'a Costs,
    /// Whether groups grow where neighbours were written.
    grow: bool,
    pace: Pace,
    waiting: Vec<Waiting>,
    /// When faults were last read.
    read_at: Duration,
    /// What was released for faults of that read.
    released: Vec<PageRange>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(groups: &'a Groups, costs: &'a Costs, grow: bool) -> Self {
        Self {
            groups,
            costs,
            grow,
            pace: Pace::new(),
            // Neither grows while somebody waits.
            waiting: Vec::with_capacity(WAITING),
            read_at: Duration::ZERO,
            released: Vec::with_capacity(MESSAGES_A_READ),
        }
    }

    /// Slows writers down from now on, or no longer; whoever waits is due.
    pub(super) fn throttle(&mut self, throttle: Option<Throttle>, now: Duration) {
        self.pace.set(throttle, now);
        for waiting in &mut self.waiting {
            waiting.due = now;
        }
    }

    /// When somebody is to be let go next.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.waiting.iter().map(|w| w.due).min()
    }

    /// The faults that follow were read at `at`, all at once: each waits from then on, whichever
    /// comes before it.
    pub(super) fn faults_read(&mut self, at: Duration) {
        self.read_at = at;
        self.released.clear();
    }

    /// `writer` waits to write to `page`.
    ///
    /// # Errors
    /// The kernel's; the writer may wait for good then.
    pub(super) fn fault(
        &mut self,
        kernel: &impl Kernel,
        page: PageRange,
        writer: u32,
    ) -> Result<(), ArmError> {
        if self.released.iter().any(|range| range.covers(&page)) {
            // Woken by the answer to a fault that was read with this one.
            return Ok(());
        }
        let group = self.groups.group(page)?;
        if self.pace.is_set() && self.waits(page, group, writer)? {
            return Ok(());
        }
        let released = self.answer(kernel, page, group, self.read_at)?;
        self.released.push(released.range);
        if released.pages > 0 {
            self.pace.let_go(writer, kernel.now());
        }
        Ok(())
    }

    /// Answers those that have waited for long enough.
    ///
    /// # Errors
    /// The kernel's; writers may wait for good then.
    pub(super) fn answer_due(&mut self, kernel: &impl Kernel) -> Result<(), ArmError> {
        let now = kernel.now();
        // An answer takes its own fault out, too: its page is among what is released.
        while let Some(w) = self.waiting.iter().find(|w| w.due <= now).copied() {
            self.answer(kernel, w.page, w.group, now)?;
        }
        Ok(())
    }

    /// Whether `writer` is made to wait before it may write to `page` of `group`.
    fn waits(
        &mut self,
        page: PageRange,
        group: PageRange,
        writer: u32,
    ) -> Result<bool, MemoryError> {
        let now = self.read_at;
        let pages = self.groups.price(page, group)?;
        if pages == 0 {
            return Ok(false);
        }
        let mut all = self.waiting.iter_mut();
        if let Some(again) = all.find(|w| w.writer == writer && w.group.covers(&page)) {
            // A signal interrupted its wait, which goes on.
            again.page = page;
            return Ok(true);
        }
        let mut all = self.waiting.iter();
        let (group, due) = match all.find(|w| w.group.covers(&page)).copied() {
            Some(first) => {
                // Charged already. All of them go on together, and none later than it may.
                let due = first.due.min(self.pace.latest(now, writer));
                for w in self.waiting.iter_mut().filter(|w| w.group == first.group) {
                    w.due = due;
                }
                (first.group, due)
            }
            None => (group, self.pace.due(now, writer, pages)),
        };
        if due <= now || self.waiting.len() >= WAITING {
            return Ok(false);
        }
        self.waiting.push(Waiting {
            writer,
            page,
            group,
            since: now,
            due,
        });
        Ok(true)
    }

    /// Releases `group` for a write to `page`, which this thread, and no throttle, has kept waiting
    /// since `since`.
    fn answer(
        &mut self,
        kernel: &impl Kernel,
        page: PageRange,
        group: PageRange,
        since: Duration,
    ) -> Result<Released, ArmError> {
        // What a writer has waited for is what it gets.
        let grow = self.grow && !self.pace.is_set();
        let lift = |pages: PageRange| kernel.release(pages);
        let released = self.groups.release(page, group, grow, lift)?;
        let now = kernel.now();
        // None: it was writable already.
        if released.pages > 0 {
            self.costs.add(released.pages, now.saturating_sub(since));
        }
        let (pace, costs) = (&mut self.pace, self.costs);
        self.waiting.retain(|w| {
            let woken = released.range.covers(&w.page);
            if woken {
                costs.add_throttled(since.saturating_sub(w.since));
                pace.let_go(w.writer, now);
            }
            !woken
        });
        Ok(released)
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
