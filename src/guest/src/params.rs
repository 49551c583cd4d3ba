//! What a workload is told on its command line: `workload=dense ws-mib=64 rate=0 …`.

use crate::disk::Layout;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Most milliseconds between heartbeats: a sleep is no longer.
pub const MAX_BEAT_MS: u64 = crate::abi::MAX_SLEEP_US as u64 / 1000;

/// Most disk requests in flight per vCPU.
pub const MAX_DEPTH: u64 = 64;

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but a heartbeat.
    Idle,
    /// Writes a word of every page of its hot set, in order, again and again.
    Dense,
    /// Writes a word of random pages.
    Sparse,
    /// Reads every page, writes one in a hundred.
    Readmostly,
    /// Writes back what is there.
    RewriteSame,
}

/// The parameters of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// What it does.
    pub kind: Kind,
    /// Pages of the hot set.
    pub ws_pages: u64,
    /// Pages filled and verified, the hot set included.
    pub fill_pages: u64,
    /// Page touches per second and vCPU; 0 is no limit.
    pub rate: u64,
    /// Share of pages that are zero, in per cent.
    pub zero: u64,
    /// Share of pages that are text-like, in per cent.
    pub text: u64,
    /// Share of pages that are records of pointers and small numbers, in per cent; the rest is
    /// random.
    pub structs: u64,
    /// Seed.
    pub seed: u64,
    /// Sparse: only pages that are multiples of this.
    pub stride: u64,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Milliseconds between heartbeats, and between looks for commands; 1 to [`MAX_BEAT_MS`].
    pub beat_ms: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// Disk requests in flight per vCPU, 0 to [`MAX_DEPTH`]; 0: the disk is not used.
    pub disk_depth: u64,
    /// Blocks of a [`PAGE`] at the disk's beginning that the vCPUs share out.
    pub disk_blocks: u64,
    /// Share of writes among reads and writes, and most of them in flight, in per cent.
    pub disk_write: u64,
    /// A flush after so many writes; 0: never.
    pub disk_flush: u64,
    /// Disk requests per second and vCPU; 0 is no limit.
    pub disk_rate: u64,
    /// Share of requests for blocks that have a write in flight, in per cent.
    pub disk_overlap: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            kind: Kind::Idle,
            ws_pages: 256,
            fill_pages: 256,
            rate: 0,
            zero: 30,
            text: 40,
            structs: 0,
            seed: 1,
            stride: 1,
            tsc_khz: 1_000_000,
            beat_ms: 1,
            vcpus: 1,
            disk_depth: 0,
            disk_blocks: 16 * 256,
            disk_write: 50,
            disk_flush: 64,
            disk_rate: 0,
            disk_overlap: 0,
        }
    }
}

impl Params {
    /// Reads a command line. Words that mean nothing here are passed over, as on any kernel's.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let mut p = Self::default();
        for word in line.split(|b| b.is_ascii_whitespace() || *b == 0) {
            let Some(eq) = word.iter().position(|&b| b == b'=') else {
                continue;
            };
            let (key, value) = (&word[..eq], &word[eq + 1..]);
            let n = number(value);
            match key {
                b"workload" => {
                    p.kind = match value {
                        b"dense" => Kind::Dense,
                        b"sparse" => Kind::Sparse,
                        b"readmostly" => Kind::Readmostly,
                        b"rewrite-same" => Kind::RewriteSame,
                        _ => Kind::Idle,
                    }
                }
                b"ws-mib" => p.ws_pages = n.saturating_mul(256).clamp(1, 1 << 32),
                b"fill-mib" => p.fill_pages = n.saturating_mul(256).clamp(1, 1 << 32),
                b"rate" => p.rate = n,
                b"seed" => p.seed = n,
                b"stride" => p.stride = n.max(1),
                b"tsc-khz" => p.tsc_khz = n.max(1000),
                b"beat-ms" => p.beat_ms = n.clamp(1, MAX_BEAT_MS),
                b"vcpus" => p.vcpus = n.clamp(1, u64::from(crate::abi::MAX_VCPUS)),
                b"disk-depth" => p.disk_depth = n.min(MAX_DEPTH),
                b"disk-mib" => p.disk_blocks = n.saturating_mul(256).clamp(256, 1 << 28),
                b"disk-write" => p.disk_write = n.min(100),
                b"disk-flush" => p.disk_flush = n,
                b"disk-rate" => p.disk_rate = n,
                b"disk-overlap" => p.disk_overlap = n.min(100),
                b"fill" => {
                    let mut shares = value.split(|&b| b == b':').map(number);
                    p.zero = shares.next().unwrap_or(0).min(100);
                    p.text = shares.next().unwrap_or(0).min(100 - p.zero);
                    // The third, of random pages, is what is left.
                    let structs = shares.nth(1).unwrap_or(0);
                    p.structs = structs.min(100 - p.zero - p.text);
                }
                _ => {}
            }
        }
        p.fill_pages = p.fill_pages.max(p.ws_pages);
        p
    }

    /// Pages of RAM that the workload needs, from its arena's beginning.
    #[must_use]
    pub fn arena_pages(&self) -> u64 {
        self.data_offset() / PAGE + self.fill_pages
    }

    /// Where the disk driver's memory begins in the arena, in bytes: after the states and the
    /// ledger of RAM, at the next page.
    #[must_use]
    pub fn disk_offset(&self) -> u64 {
        (PAGE + self.ws_pages * 4).next_multiple_of(PAGE)
    }

    /// Where the filled pages begin in the arena, in bytes: after the states, the ledger and the
    /// disk driver's memory, at the next huge page.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        let disk = Layout::of(self).map_or(0, |layout| layout.bytes());
        (self.disk_offset() + disk).next_multiple_of(2 << 20)
    }
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0u64, |n, b| {
            n.saturating_mul(10).saturating_add(u64::from(b - b'0'))
        })
}
