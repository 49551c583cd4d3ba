use vmferry_memory::GuestRam;

use super::*;
use crate::Role;
use crate::file::image::Caching;

const DISK: u64 = 8 << 20;

/// An image whose storage takes 4096 bytes at once, and guest memory.
struct Bench {
    image: Image,
    zeros: Arc<Aligned>,
    ram: Arc<GuestRam>,
    held: bool,
}

impl Bench {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK).unwrap();
        let mut image = Image::open(file.path(), false, Role::Owner, Caching::Buffered).unwrap();
        image.alignment = Alignment {
            memory: 512,
            disk: 4096,
        };
        image.geometry.discard = true;
        Self {
            image,
            zeros: Arc::new(Aligned::new(MAX_BOUNCE, 4096)),
            ram: Arc::new(GuestRam::new(16 << 20).unwrap()),
            held: false,
        }
    }

    fn with(&self) -> Context<'_> {
        Context {
            image: &self.image,
            zeros: &self.zeros,
            held: self.held,
        }
    }

    fn job(&self, kind: JobKind, offset: u64, runs: &[(u64, u32)]) -> Job {
        let buffers = Buffers::new(&self.ram, runs.iter().copied()).unwrap();
        let extent = Extent::new(offset, buffers.len());
        self.begin(kind, extent, buffers)
    }

    fn zeroing(&self, unmap: bool, len: u64) -> Job {
        let kind = JobKind::WriteZeroes { unmap };
        self.begin(kind, Extent::new(4096, len), Buffers::none())
    }

    fn begin(&self, kind: JobKind, extent: Extent, buffers: Buffers) -> Job {
        let operation = Operation {
            id: JobId(1),
            kind,
            extent,
            buffers,
        };
        let mut job = Job::new(operation, &self.image.geometry).unwrap();
        job.step(&self.with()).unwrap();
        job
    }

    /// The job has taken its next step; what goes at once, in bytes.
    fn size(&self, job: &mut Job) -> usize {
        job.step(&self.with()).unwrap();
        match &job.memory {
            Memory::Runs(Runs(runs)) => runs.iter().map(|r| r.iov_len).sum(),
            Memory::Bounce { buffer, .. } => buffer.len(),
            Memory::Zeros(_) => MAX_BOUNCE.min((job.extent.len - job.done) as usize),
            Memory::None => 0,
        }
    }
}

const DONE: Next = Next::End(JobEnd::Done);
const CANCELLED: Next = Next::End(JobEnd::Cancelled);
const UNKNOWN: Next = Next::End(JobEnd::Unknown);
const fn failed(errno: i32) -> Next {
    Next::End(JobEnd::Failed(errno))
}

#[test]
fn short_writes_are_continued_where_a_direct_write_can_begin() {
    let bench = Bench::new();
    let mut job = bench.job(JobKind::Write, 0, &[(0, 16384), (65536, 8192)]);
    assert_eq!(job.bounce_bytes(), 0);
    assert_eq!(job.after(5000, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 24576 - 4096);
    assert_eq!(job.after(16384, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 4096);
    assert_eq!(job.after(100, &bench.with()), failed(libc::EIO));
}

#[test]
fn short_reads_are_continued_and_the_end_of_the_file_is_an_error() {
    let bench = Bench::new();
    let mut job = bench.job(JobKind::Read, 4096, &[(0, 16384)]);
    assert_eq!(job.after(4608, &bench.with()), Next::Again);
    // From 8704 on, by memory of ours: whole blocks around it.
    assert_eq!(bench.size(&mut job), 12288);
    assert_eq!(job.after(512 + 100, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 12288);
    assert_eq!(job.after(612, &bench.with()), failed(libc::EIO));
}

#[test]
fn memory_that_is_not_aligned_goes_through_ours_piece_by_piece() {
    let bench = Bench::new();
    let len = 600 << 10;
    let mut job = bench.job(JobKind::Write, 8192, &[(8, len)]);
    let mut rest = len as usize;
    while rest > MAX_BOUNCE {
        assert_eq!(job.bounce_bytes(), MAX_BOUNCE);
        assert_eq!(job.after(MAX_BOUNCE as i32, &bench.with()), Next::Again);
        rest -= MAX_BOUNCE;
        assert_eq!(bench.size(&mut job), rest.min(MAX_BOUNCE));
    }
    assert_eq!(job.after(rest as i32, &bench.with()), DONE);
}

#[test]
fn more_runs_than_the_kernel_takes_go_one_lot_after_another() {
    let bench = Bench::new();
    let runs: Vec<_> = (0..1500).map(|i| (i * 8192, 4096)).collect();
    let mut job = bench.job(JobKind::Write, 0, &runs);
    assert_eq!(job.after(1024 * 4096, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 476 * 4096);
    assert_eq!(job.after(476 * 4096, &bench.with()), DONE);
}

#[test]
fn a_part_of_a_block_is_not_written() {
    let bench = Bench::new();
    for (offset, len) in [(512, 4096), (0, 512), (4096, 4608)] {
        let buffers = Buffers::new(&bench.ram, [(0, len)]).unwrap();
        let operation = Operation {
            id: JobId(1),
            kind: JobKind::Write,
            extent: Extent::new(offset, buffers.len()),
            buffers,
        };
        let mut job = Job::new(operation, &bench.image.geometry).unwrap();
        assert_eq!(job.step(&bench.with()).err(), Some(libc::EINVAL));
    }
}

#[test]
fn what_the_storage_cannot_zero_is_written() {
    let bench = Bench::new();
    let mut job = bench.zeroing(true, 300 << 10);
    assert_eq!(job.after(-libc::EOPNOTSUPP, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 0);
    assert_eq!(job.after(-libc::EOPNOTSUPP, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), MAX_BOUNCE);
    assert_eq!(job.after(MAX_BOUNCE as i32, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 44 << 10);
    assert_eq!(job.after(44 << 10, &bench.with()), DONE);
    // Space that is to stay is not given back.
    let mut job = bench.zeroing(false, 8192);
    assert_eq!(job.after(-libc::EOPNOTSUPP, &bench.with()), Next::Again);
    assert_eq!(bench.size(&mut job), 8192);
}

#[test]
fn interruptions_are_tried_again_and_not_for_ever() {
    let bench = Bench::new();
    for errno in [libc::EINTR, libc::EAGAIN] {
        let mut job = bench.job(JobKind::Write, 0, &[(0, 8192)]);
        let mut tries = 0;
        while job.after(-errno, &bench.with()) == Next::Again {
            tries += 1;
        }
        assert_eq!(tries, MAX_FRUITLESS - 1);
        assert_eq!(job.after(-errno, &bench.with()), failed(errno));
        assert_eq!(
            job.after(-libc::ENOSPC, &bench.with()),
            failed(libc::ENOSPC)
        );
    }
}

#[test]
fn what_the_disk_has_no_part_of_is_cancelled_and_what_it_has_is_not() {
    let mut bench = Bench::new();
    let write = [(0, 16384)];
    let unwanted = |bench: &Bench, kind| {
        let mut job = bench.job(kind, 0, &write);
        job.unwanted = true;
        job
    };
    for held in [false, true] {
        bench.held = held;
        let mut job = unwanted(&bench, JobKind::Write);
        assert_eq!(job.after(-libc::ECANCELED, &bench.with()), CANCELLED);
        // Half of it is there: carried on with, unless nobody needs to know.
        let mut job = unwanted(&bench, JobKind::Write);
        let half = if held { UNKNOWN } else { Next::Again };
        assert_eq!(job.after(8192, &bench.with()), half);
        assert_eq!(job.give_up(held), held.then_some(JobEnd::Unknown));
        let mut job = unwanted(&bench, JobKind::Write);
        assert_eq!(job.after(-libc::EINTR, &bench.with()), half);
        // The last part has come: it is done, wanted or not.
        let mut job = unwanted(&bench, JobKind::Write);
        assert_eq!(job.after(16384, &bench.with()), DONE);
        for result in [8192, -libc::EINTR, -libc::ECANCELED] {
            let mut job = unwanted(&bench, JobKind::Read);
            assert_eq!(job.after(result, &bench.with()), CANCELLED);
        }
    }
}
