//! The workload itself: fills RAM, works on it, and verifies it, step by step.
//!
//! All that it knows lies in its arena in guest RAM: a page of states, the ledger, what the disk's
//! driver needs, then the filled pages. A step leaves the arena consistent, so a native thread may stop between any two
//! and another go on from the same memory; a vCPU may be stopped anywhere. A native thread may find
//! anything at all in the arena: a garbled state makes wrong results, never an access outside.

mod verify;

use crate::disk::{Disk, Pace};
use crate::params::{Kind, PAGE, Params};
use crate::pattern::{Pattern, WORDS, counter_word, mix};
use crate::platform::Platform;
use crate::share::Share;

/// What a vCPU is doing.
const FILLING: u64 = 0;
const WORKING: u64 = 1;
const VERIFYING: u64 = 2;
/// Reading the disk back, before RAM is verified.
const CHECKING: u64 = 3;

/// A vCPU's state, in guest RAM.
#[repr(C, align(128))]
#[derive(Debug)]
struct State {
    phase: u64,
    /// Next page of its share to fill or verify.
    next: u64,
    /// Page touches so far.
    work: u64,
    /// Whole sweeps over its part of the hot set, and where the present one is.
    sweeps: u64,
    at: u64,
    /// Writes noted in the ledger.
    writes: u64,
    random: u64,
    result: u64,
    /// TSC of the last heartbeat.
    beat: u64,
    /// Thousandths of a touch by which the rate is behind.
    owed: u64,
}

/// Pages filled or verified in a step.
const PAGES_A_STEP: u64 = 64;
/// Touches between two looks at the clock.
const TOUCHES_A_LOOK: u64 = 2048;
/// The same where there is a disk: what it is slow to answer is asked for that much later.
const TOUCHES_A_PUMP: u64 = 256;

/// One vCPU's part of a workload.
#[derive(Debug)]
pub struct Worker {
    params: Params,
    state: *mut State,
    ledger: *mut u32,
    data: *mut u64,
    hot: Share,
    rest: Share,
    disk: Option<Disk>,
}

impl Worker {
    /// Worker `index` of `params.vcpus` over the arena at `arena`; goes on from whatever state
    /// is there (all zero: from the beginning).
    ///
    /// # Safety
    /// `arena` is page aligned, valid for `params.arena_pages()` pages for as long as the worker
    /// lives, and no two live workers have the same index in it.
    #[must_use]
    pub unsafe fn new(arena: *mut u8, params: Params, index: u32) -> Self {
        let index = u64::from(index).min(params.vcpus - 1);
        // SAFETY: both offsets lie inside the arena, whose size is computed from the same values;
        // a page holds `MAX_VCPUS` states.
        let (state, ledger, data) = unsafe {
            (
                arena.cast::<State>().add(index as usize),
                arena.add(PAGE as usize).cast(),
                arena.add(params.data_offset() as usize).cast(),
            )
        };
        // SAFETY: by this function's contract.
        let disk = unsafe { Disk::new(arena, &params, index as u32) };
        Self {
            disk,
            hot: Share::of(0, params.ws_pages, index, params.vcpus),
            rest: Share::of(params.ws_pages, params.fill_pages, index, params.vcpus),
            params,
            state,
            ledger,
            data,
        }
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: valid by `new`'s contract, and only this worker uses this state.
        unsafe { &mut *self.state }
    }

    /// The words of `page`, which is below `fill_pages`.
    #[inline]
    fn word(&self, page: u64, word: usize) -> *mut u64 {
        debug_assert!(page < self.params.fill_pages && word < WORDS);
        // SAFETY: inside the arena for pages below `fill_pages`.
        unsafe { self.data.add(page as usize * WORDS + word) }
    }

    #[inline]
    fn entry(&self, page: u64) -> *mut u32 {
        debug_assert!(page < self.params.ws_pages);
        // SAFETY: the ledger has an entry for each page of the hot set.
        unsafe { self.ledger.add(page as usize) }
    }

    /// Does a little: fills or verifies some pages, or works for at most about a millisecond.
    pub fn step(&mut self, platform: &mut impl Platform) {
        match self.state().phase {
            FILLING => self.fill(platform),
            VERIFYING => self.verify(platform),
            CHECKING => self.check_disk(platform),
            _ => self.work(platform),
        }
    }

    /// The `n`-th page of this worker's share, hot ones first.
    fn page(&self, n: u64) -> Option<u64> {
        if n < self.hot.len() {
            Some(self.hot.from + n)
        } else if n < self.hot.len() + self.rest.len() {
            Some(self.rest.from + n - self.hot.len())
        } else {
            None
        }
    }

    fn fill(&mut self, platform: &mut impl Platform) {
        for _ in 0..PAGES_A_STEP {
            let n = self.state().next;
            let Some(page) = self.page(n) else {
                let tsc = platform.tsc();
                let seed = mix(self.params.seed ^ mix(self.hot.from));
                let state = self.state();
                state.random = seed | 1;
                state.phase = WORKING;
                state.beat = tsc;
                if let Some(disk) = &mut self.disk {
                    disk.initialise(platform);
                }
                platform.ready();
                return;
            };
            let mut pattern = Pattern::of(&self.params, page);
            for i in 0..WORDS {
                // SAFETY: `word` is inside the arena; nobody else writes this worker's pages.
                unsafe { self.word(page, i).write_volatile(pattern.next_word()) };
            }
            if page < self.params.ws_pages {
                // SAFETY: as above.
                unsafe {
                    self.word(page, counter_word(page)).write_volatile(0);
                    self.entry(page).write_volatile(0);
                }
            }
            self.state().next = n + 1;
        }
        // A guest that fills much RAM shows that it lives.
        let work = self.state().work;
        platform.heartbeat(work);
    }

    /// Touches until the next heartbeat; none where there is no limit. What a rate does not divide
    /// into whole touches is owed to the next.
    fn quota(&mut self) -> Option<u64> {
        match (self.params.kind, self.params.rate) {
            (Kind::Idle, _) => Some(0),
            (_, 0) => None,
            (_, rate) => {
                let per_beat = rate.saturating_mul(self.params.beat_ms);
                let state = self.state();
                let due = per_beat.saturating_add(state.owed % 1000);
                state.owed = due % 1000;
                Some(due / 1000)
            }
        }
    }

    fn work(&mut self, platform: &mut impl Platform) {
        let khz = self.params.tsc_khz;
        let (beat_ms, beat) = (self.params.beat_ms, self.state().beat);
        let period = khz * beat_ms;
        let quota = self.quota();
        let a_look = match self.disk {
            None => TOUCHES_A_LOOK,
            Some(_) => TOUCHES_A_PUMP,
        };
        let mut done = 0;
        loop {
            let touches = match quota {
                Some(quota) => (quota - done).min(a_look),
                None => a_look,
            };
            self.touch(touches);
            done += touches;
            let now = platform.tsc();
            let pace = match &mut self.disk {
                None => Pace::Never,
                Some(disk) => disk.pump(platform, now),
            };
            let elapsed = now.wrapping_sub(beat);
            let limited = quota.is_some_and(|quota| done >= quota);
            if limited && elapsed < period {
                let left = ((period - elapsed) * 1000 / khz).clamp(1, beat_ms * 1000) as u32;
                match pace {
                    Pace::Now => {
                        core::hint::spin_loop();
                        continue;
                    }
                    Pace::Later(us) if us < left => {
                        platform.sleep_us(us);
                        continue;
                    }
                    _ => platform.sleep_us(left),
                }
            }
            if limited || elapsed >= period {
                // From when it should have been, so that the rate holds; unless far behind.
                let behind = platform.tsc().wrapping_sub(beat) > 4 * period;
                let next = if behind {
                    platform.tsc()
                } else {
                    beat.wrapping_add(period)
                };
                self.state().beat = next;
                break;
            }
        }
        let work = self.state().work;
        platform.heartbeat(work);
        if let Some(disk) = &mut self.disk {
            disk.beat(platform);
        }
        let command = platform.command();
        self.obey(platform, command);
    }

    fn touch(&mut self, n: u64) {
        if self.hot.is_empty() {
            return;
        }
        match self.params.kind {
            Kind::Idle => return,
            Kind::Dense => self.sweep(n, |w, page, sweep| {
                // SAFETY: a page of this worker's hot set.
                unsafe {
                    w.word(page, counter_word(page))
                        .write_volatile(sweep.wrapping_add(1))
                };
                0
            }),
            Kind::RewriteSame => self.sweep(n, |w, page, _| {
                let at = w.word(page, counter_word(page) ^ 1);
                // SAFETY: a page of this worker's hot set.
                unsafe { at.write_volatile(at.read_volatile()) };
                0
            }),
            Kind::Readmostly => self.sweep(n, |w, page, sweep| {
                if page % 100 == sweep % 100 {
                    w.count(page);
                    return 1;
                }
                // SAFETY: a page of this worker's hot set.
                let _ = unsafe { w.word(page, counter_word(page)).read_volatile() };
                0
            }),
            Kind::Sparse => self.sparse(n),
        }
        let state = self.state();
        state.work = state.work.wrapping_add(n);
    }

    #[inline]
    fn sweep(&mut self, n: u64, touch: impl Fn(&Self, u64, u64) -> u64) {
        let hot = self.hot;
        let (mut at, mut sweeps) = (self.state().at, self.state().sweeps);
        if at >= hot.len() {
            // Never written so: the state is garbled.
            at = 0;
        }
        let mut writes = 0u64;
        let mut left = n;
        while left > 0 {
            let run = left.min(hot.len() - at);
            for page in hot.from + at..hot.from + at + run {
                writes += touch(self, page, sweeps);
            }
            at += run;
            left -= run;
            if at == hot.len() {
                at = 0;
                sweeps = sweeps.wrapping_add(1);
            }
        }
        let state = self.state();
        (state.at, state.sweeps) = (at, sweeps);
        state.writes = state.writes.wrapping_add(writes);
    }

    fn sparse(&mut self, n: u64) {
        let hot = self.hot;
        let stride = self.params.stride.min(hot.len());
        let slots = hot.len().div_ceil(stride);
        let mut random = self.state().random;
        for _ in 0..n {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let slot = ((random >> 32) * slots) >> 32;
            self.count(hot.from + slot * stride);
        }
        let state = self.state();
        state.random = random;
        state.writes = state.writes.wrapping_add(n);
    }

    /// One more in the page's counter and in the ledger.
    #[inline]
    fn count(&self, page: u64) {
        let (word, entry) = (self.word(page, counter_word(page)), self.entry(page));
        // SAFETY: a page of this worker's hot set and its ledger entry.
        unsafe {
            let n = entry.read_volatile().wrapping_add(1);
            word.write_volatile(u64::from(n));
            entry.write_volatile(n);
        }
    }
}
