//! The workload itself: fills RAM, works on it, and verifies it, step by step.
//!
//! All that it knows lies in its arena in guest RAM: a page of states, the ledger, then the
//! filled pages. A step leaves the arena consistent, so a native thread may stop between any two
//! and another go on from the same memory; a vCPU may be stopped anywhere. A native thread may find
//! anything at all in the arena: a garbled state makes wrong results, never an access outside.

use crate::abi;
use crate::params::{Kind, PAGE, Params};
use crate::pattern::{Pattern, WORDS, counter_word, mix};

/// What a workload needs of whoever runs it.
pub trait Platform {
    /// The time stamp counter, or anything that counts `tsc_khz` thousand a second.
    fn tsc(&mut self) -> u64;
    /// See [`abi::PORT_HEARTBEAT`].
    fn heartbeat(&mut self, work: u64);
    /// See [`abi::PORT_COMMAND`].
    fn command(&mut self) -> u32;
    /// See [`abi::PORT_SLEEP`].
    fn sleep_us(&mut self, us: u32);
    /// See [`abi::PORT_VERIFIED`].
    fn verified(&mut self, result: u32);
    /// See [`abi::PORT_READY`].
    fn ready(&mut self);
    /// Whether registers that nobody writes are as they were set; true where there are none.
    fn registers_intact(&mut self) -> bool;
}

/// What a vCPU is doing.
const FILLING: u64 = 0;
const WORKING: u64 = 1;
const VERIFYING: u64 = 2;

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

/// One vCPU's part of a workload.
#[derive(Debug)]
pub struct Worker {
    params: Params,
    state: *mut State,
    ledger: *mut u32,
    data: *mut u64,
    hot: Share,
    rest: Share,
}

/// Pages `[from, to)`.
#[derive(Clone, Copy, Debug)]
struct Share {
    from: u64,
    to: u64,
}

impl Share {
    fn of(from: u64, to: u64, index: u64, n: u64) -> Self {
        let len = to - from;
        Self {
            from: from + len * index / n,
            to: from + len * (index + 1) / n,
        }
    }

    fn len(self) -> u64 {
        self.to - self.from
    }
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
        Self {
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

    /// Touches of this millisecond; none where there is no limit. What a rate does not divide
    /// into whole touches is owed to the next.
    fn quota(&mut self) -> Option<u64> {
        match (self.params.kind, self.params.rate) {
            (Kind::Idle, _) => Some(0),
            (_, 0) => None,
            (_, rate) => {
                let state = self.state();
                let due = rate.saturating_add(state.owed % 1000);
                state.owed = due % 1000;
                Some(due / 1000)
            }
        }
    }

    fn work(&mut self, platform: &mut impl Platform) {
        let khz = self.params.tsc_khz;
        let beat = self.state().beat;
        let quota = self.quota();
        let mut done = 0;
        loop {
            let touches = match quota {
                Some(quota) => (quota - done).min(TOUCHES_A_LOOK),
                None => TOUCHES_A_LOOK,
            };
            self.touch(touches);
            done += touches;
            let now = platform.tsc();
            let elapsed = now.wrapping_sub(beat);
            let limited = quota.is_some_and(|quota| done >= quota);
            if limited && elapsed < khz {
                let us = (khz - elapsed) * 1000 / khz;
                platform.sleep_us(us.clamp(1, 1000) as u32);
            }
            if limited || elapsed >= khz {
                // From when it should have been, so that the rate holds; unless far behind.
                let behind = platform.tsc().wrapping_sub(beat) > 4 * khz;
                let next = if behind {
                    platform.tsc()
                } else {
                    beat.wrapping_add(khz)
                };
                self.state().beat = next;
                break;
            }
        }
        let work = self.state().work;
        platform.heartbeat(work);
        if platform.command() == abi::COMMAND_VERIFY {
            let state = self.state();
            state.phase = VERIFYING;
            state.next = 0;
            state.result = u64::from(abi::VERIFY_OK);
        }
    }

    fn touch(&mut self, n: u64) {
        if self.hot.len() == 0 {
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

    /// What the counter of a page of the hot set must be.
    fn expected_counter(&mut self, page: u64) -> u64 {
        match self.params.kind {
            Kind::Idle | Kind::RewriteSame => 0,
            Kind::Dense => {
                let at = self.hot.from.wrapping_add(self.state().at);
                self.state().sweeps.wrapping_add(u64::from(page < at))
            }
            Kind::Sparse | Kind::Readmostly => {
                // SAFETY: a page of the hot set has a ledger entry.
                u64::from(unsafe { self.entry(page).read_volatile() })
            }
        }
    }

    fn is_right(&mut self, page: u64) -> bool {
        let counter = (page < self.params.ws_pages)
            .then(|| (counter_word(page), self.expected_counter(page)));
        let mut pattern = Pattern::of(&self.params, page);
        let mut wrong = 0;
        for i in 0..WORDS {
            let mut expected = pattern.next_word();
            if let Some((word, value)) = counter
                && word == i
            {
                expected = value;
            }
            // SAFETY: a page of this worker's share.
            wrong |= unsafe { self.word(page, i).read_volatile() } ^ expected;
        }
        wrong == 0
    }

    fn verify(&mut self, platform: &mut impl Platform) {
        for _ in 0..PAGES_A_STEP {
            let n = self.state().next;
            let Some(page) = self.page(n) else {
                return self.conclude(platform);
            };
            if self.state().result == 0 && !self.is_right(page) {
                self.state().result = (page + 1).min(u64::from(u32::MAX - 2));
            }
            self.state().next = n + 1;
        }
    }

    fn conclude(&mut self, platform: &mut impl Platform) {
        if self.state().result == 0 && !self.ledger_fits() {
            self.state().result = u64::from(abi::VERIFY_LEDGER);
        }
        if self.state().result == 0 && !platform.registers_intact() {
            self.state().result = u64::from(abi::VERIFY_REGISTERS);
        }
        let tsc = platform.tsc();
        let state = self.state();
        state.phase = WORKING;
        state.beat = tsc;
        let result = state.result as u32;
        platform.verified(result);
    }

    /// Whether all that was counted on the side sums up.
    fn ledger_fits(&mut self) -> bool {
        let hot = self.hot;
        let in_ledger = (hot.from..hot.to).fold(0u64, |sum, page| {
            // SAFETY: a page of the hot set has a ledger entry.
            sum.wrapping_add(u64::from(unsafe { self.entry(page).read_volatile() }))
        });
        let kind = self.params.kind;
        let state = self.state();
        let swept = state.sweeps.wrapping_mul(hot.len()).wrapping_add(state.at);
        match kind {
            Kind::Idle => state.work == 0,
            Kind::Dense | Kind::RewriteSame => state.work == swept,
            Kind::Readmostly => state.work == swept && state.writes == in_ledger,
            Kind::Sparse => state.work == in_ledger && state.writes == in_ledger,
        }
    }
}
