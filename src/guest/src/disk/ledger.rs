//! What a block of the disk may hold, by the order in which its writes were issued and came back.
//!
//! A write supersedes, once it is acknowledged, what had come back before it was issued. Writes in
//! flight together come in any order. One that failed has happened or not, sector by sector, until
//! a later one is acknowledged. Nothing here touches memory.

/// Most writes in flight on one block.
pub const MAX_LIVE: usize = 4;
const MAX_SETTLED: usize = 6;
/// The block as the driver found it: it may hold anything.
pub const UNWRITTEN: u32 = 0;
/// Any write issued so far: too many have failed to keep them apart.
pub const ANY: u32 = u32::MAX;
/// In [`Entry::doom`]: the write has failed. The bits below are of writes in flight.
const FAILED: u8 = 1 << 7;

/// The ledger's entry for a block. All zero: never written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Count of acknowledgements of the vCPU at this block's latest.
    acked_at: u64,
    /// Generation of the write issued last; the first is 1.
    issued: u32,
    /// Generation of the write acknowledged last, 0 for none.
    acked: u32,
    /// Generation of the write that a flush is known to cover, 0 for none; newer ones may be, too:
    /// see [`Entry::durable`].
    flushed: u32,
    /// Generations in flight, 0 for none.
    live: [u32; MAX_LIVE],
    /// Generations that came back and that the block may hold.
    settled: [u32; MAX_SETTLED],
    /// For each of those, the writes in flight that supersede it once acknowledged.
    doom: [u8; MAX_SETTLED],
    count: u8,
    reads: u8,
}

/// What a read may find: settled when it is issued.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Generations, the first `n` of them.
    list: [u32; MAX_SETTLED + MAX_LIVE],
    n: u32,
    /// Generation issued last before the read was.
    issued: u32,
    /// Writes in flight as the read was issued.
    live: u32,
}

impl Entry {
    /// Whether any write was ever issued.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.issued != 0
    }

    /// Writes in flight.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.live.iter().filter(|&&g| g != 0).count()
    }

    /// Reads in flight.
    #[must_use]
    pub const fn reads(&self) -> u8 {
        self.reads
    }

    fn known(&self) -> usize {
        usize::from(self.count).min(MAX_SETTLED)
    }

    /// A write is issued: its place among those in flight, and its generation. None where there
    /// are [`MAX_LIVE`] already.
    pub fn issue(&mut self) -> Option<(u32, u32)> {
        let k = self.live.iter().position(|&g| g == 0)?;
        if self.known() == 0 {
            self.push(UNWRITTEN, 0);
        }
        self.issued = self.issued.wrapping_add(1);
        self.live[k] = self.issued;
        let n = self.known();
        for doom in &mut self.doom[..n] {
            *doom |= 1 << k;
        }
        Some((k as u32, self.issued))
    }

    /// The write at place `k` is acknowledged as the vCPU's `at`-th; `flushed_to` of them are
    /// known to be flushed. False where none is in flight there.
    #[must_use]
    pub fn acknowledge(&mut self, k: u32, at: u64, flushed_to: u64) -> bool {
        let Some(generation) = self.take(k) else {
            return false;
        };
        let (mut kept, n) = (0, self.known());
        for i in 0..n {
            if self.doom[i] & 1 << k == 0 {
                (self.settled[kept], self.doom[kept]) = (self.settled[i], self.doom[i]);
                kept += 1;
            }
        }
        self.count = kept as u8;
        self.push(generation, 0);
        self.flushed = self.durable(flushed_to);
        (self.acked, self.acked_at) = (generation, at);
        true
    }

    /// The write at place `k` has failed. False where none is in flight there.
    #[must_use]
    pub fn fail(&mut self, k: u32) -> bool {
        let Some(generation) = self.take(k) else {
            return false;
        };
        for doom in &mut self.doom {
            *doom &= !(1 << k);
        }
        self.push(generation, FAILED);
        true
    }

    /// Generation of the write that survives a loss of power, at least, where `flushed_to`
    /// acknowledgements of the vCPU are flushed; 0 for none.
    #[must_use]
    pub const fn durable(&self, flushed_to: u64) -> u32 {
        if self.acked != 0 && self.acked_at <= flushed_to {
            self.acked
        } else {
            self.flushed
        }
    }

    /// A read is issued.
    pub fn read(&mut self) -> Allowed {
        self.reads = self.reads.wrapping_add(1);
        let mut allowed = Allowed {
            issued: self.issued,
            live: self.writes() as u32,
            ..Allowed::default()
        };
        let settled = &self.settled[..self.known()];
        if settled.is_empty() {
            allowed.add(UNWRITTEN);
        }
        for &generation in settled.iter().chain(self.live.iter().filter(|&&g| g != 0)) {
            allowed.add(generation);
        }
        allowed
    }

    /// A read has come back, which was `allowed` so much. `found` is the one generation in all of
    /// its sectors, where there was one: what then settles is all that later reads may find.
    pub fn read_done(&mut self, allowed: &Allowed, found: Option<u32>) {
        self.reads = self.reads.saturating_sub(1);
        let undisturbed = allowed.live == 0 && allowed.issued == self.issued;
        let n = self.known();
        // What failed may happen yet, and what was there before is not known.
        let sure = self.doom[..n].iter().all(|d| d & FAILED == 0)
            && !self.settled[..n].contains(&UNWRITTEN);
        if let Some(generation) = found
            && undisturbed
            && sure
            && n > 1
        {
            (self.settled[0], self.doom[0], self.count) = (generation, 0, 1);
        }
    }

    /// Generation issued last.
    #[must_use]
    pub const fn issued(&self) -> u32 {
        self.issued
    }

    fn take(&mut self, k: u32) -> Option<u32> {
        let generation = self.live.get_mut(k as usize)?;
        let taken = core::mem::take(generation);
        (taken != 0).then_some(taken)
    }

    fn push(&mut self, generation: u32, doom: u8) {
        if self.known() == MAX_SETTLED {
            let (mut all, mut failed) = (!FAILED, 0);
            for &doom in &self.doom {
                all &= doom;
                failed |= doom & FAILED;
            }
            let anything = self.settled.contains(&UNWRITTEN);
            self.settled[0] = if anything { UNWRITTEN } else { ANY };
            self.doom[0] = all | failed;
            self.count = 1;
        }
        let n = self.known();
        (self.settled[n], self.doom[n]) = (generation, doom);
        self.count = n as u8 + 1;
    }
}

impl Allowed {
    fn add(&mut self, generation: u32) {
        if let Some(place) = self.list.get_mut(self.n as usize) {
            *place = generation;
            self.n += 1;
        }
    }

    /// The generations, without those issued since.
    #[must_use]
    pub fn list(&self) -> &[u32] {
        &self.list[..(self.n as usize).min(self.list.len())]
    }

    /// Whether the block may hold anything at all, stamped or not.
    #[must_use]
    pub fn anything(&self) -> bool {
        self.list().contains(&UNWRITTEN)
    }

    /// Whether a sector of `generation` is right, where `issued` was issued last by now.
    #[must_use]
    pub fn permits(&self, generation: u32, issued: u32) -> bool {
        let list = self.list();
        self.anything()
            || list.contains(&generation)
            || (list.contains(&ANY) && (1..=self.issued).contains(&generation))
            || (generation > self.issued && generation <= issued)
    }
}
