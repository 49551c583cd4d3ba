//! One operation on a file, from system call to system call until it has ended. No IO happens
//! here: a job says what is to be asked of the kernel next, and is told what came of it.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use vmferry_protocol::storage::{Extent, JobEnd, JobId, JobKind};

use super::aligned::Aligned;
use super::image::{Alignment, Image};
use crate::{Buffers, Geometry, Operation};

/// Most bytes that go through memory of ours in one step.
pub(super) const MAX_BOUNCE: usize = 256 << 10;
/// Most runs that the kernel takes at once.
const MAX_RUNS: usize = 1024;
/// Attempts without progress before an operation counts as failed.
const MAX_FRUITLESS: u32 = 100;

/// What a job needs to know of where it runs.
pub(super) struct Context<'a> {
    pub(super) image: &'a Image,
    /// [`MAX_BOUNCE`] zeros.
    pub(super) zeros: &'a Arc<Aligned>,
    /// Whether an operation may end as unknown.
    pub(super) held: bool,
}

/// What follows a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another [`Job::step`].
    Again,
    /// Nothing.
    End(JobEnd),
}

/// The pieces of guest memory of one step, as the kernel reads them.
#[derive(Debug)]
struct Runs(Vec<libc::iovec>);

// SAFETY: addresses of guest memory, which belongs to no thread; the job's `Buffers` keep it.
unsafe impl Send for Runs {}

/// What the kernel uses while a step is under way.
#[derive(Debug)]
enum Memory {
    None,
    Runs(#[allow(dead_code, reason = "kept for the kernel")] Runs),
    Bounce {
        buffer: Aligned,
        /// Bytes before those that were asked for.
        head: usize,
        want: usize,
    },
    Zeros(#[allow(dead_code, reason = "kept for the kernel")] Arc<Aligned>),
}

/// Ways to write zeros, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeroing {
    Punch,
    Range,
    Write,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    kind: JobKind,
    extent: Extent,
    buffers: Buffers,
    /// Bytes that are through.
    done: u64,
    memory: Memory,
    zeroing: Zeroing,
    fruitless: u32,
    /// Somebody has asked for its end.
    pub(super) unwanted: bool,
}

impl Job {
    /// The job of an operation, or how it ends at once.
    pub(super) fn new(operation: Operation, geometry: &Geometry) -> Result<Self, JobEnd> {
        let Operation {
            id,
            kind,
            extent,
            buffers,
        } = operation;
        if kind == JobKind::Flush {
            if !geometry.flush {
                return Err(JobEnd::Done);
            }
        } else if !extent.is_within(geometry.bytes)
            || !extent.offset.is_multiple_of(512)
            || !extent.len.is_multiple_of(512)
        {
            return Err(JobEnd::Failed(libc::EINVAL));
        } else if kind.changes_disk() && geometry.read_only {
            return Err(JobEnd::Failed(libc::EROFS));
        } else if extent.len == 0 {
            return Err(JobEnd::Done);
        }
        match kind {
            JobKind::Read | JobKind::Write
                if extent.len != buffers.len() || extent.len > geometry.max_transfer.into() =>
            {
                return Err(JobEnd::Failed(libc::EINVAL));
            }
            JobKind::Discard if !geometry.discard => {
                return Err(JobEnd::Failed(libc::EOPNOTSUPP));
            }
            _ => {}
        }
        Ok(Self {
            id,
            zeroing: match kind {
                JobKind::WriteZeroes { unmap: true } => Zeroing::Punch,
                _ => Zeroing::Range,
            },
            kind,
            extent,
            buffers,
            done: 0,
            memory: Memory::None,
            fruitless: 0,
            unwanted: false,
        })
    }

    /// The next thing to ask of the kernel. What it refers to lives in the job and stays there
    /// until the next call. An errno if there is no way.
    pub(super) fn step(&mut self, with: &Context<'_>) -> Result<squeue::Entry, i32> {
        let fd = types::Fd(with.image.file.as_raw_fd());
        let fallocate = |mode| {
            opcode::Fallocate::new(fd, self.extent.len)
                .offset(self.extent.offset)
                .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
                .build()
        };
        match self.kind {
            JobKind::Flush => Ok(opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build()),
            JobKind::Discard => Ok(fallocate(libc::FALLOC_FL_PUNCH_HOLE)),
            JobKind::WriteZeroes { .. } => match self.zeroing {
                Zeroing::Punch => Ok(fallocate(libc::FALLOC_FL_PUNCH_HOLE)),
                Zeroing::Range => Ok(fallocate(libc::FALLOC_FL_ZERO_RANGE)),
                Zeroing::Write => self.write_zeros(fd, with),
            },
            JobKind::Read | JobKind::Write => {
                let (runs, aligned) = self.runs(with.image.alignment);
                if aligned {
                    Ok(self.direct(fd, runs))
                } else {
                    self.bounced(fd, with.image.alignment)
                }
            }
        }
    }

    /// Bytes of our own memory that it holds.
    pub(super) fn bounce_bytes(&self) -> usize {
        match &self.memory {
            Memory::Bounce { buffer, .. } => buffer.len(),
            _ => 0,
        }
    }

    /// What the kernel says of the step.
    pub(super) fn after(&mut self, result: i32, with: &Context<'_>) -> Next {
        if result >= 0 {
            return self.advance(result as usize, with);
        }
        match -result {
            // io_uring has not begun with the step.
            libc::ECANCELED => match self.give_up(with.held) {
                Some(end) => Next::End(end),
                None => Next::Again,
            },
            libc::EINTR if self.unwanted && !self.kind.changes_disk() => {
                Next::End(JobEnd::Cancelled)
            }
            libc::EINTR if self.unwanted && with.held => Next::End(JobEnd::Unknown),
            errno @ (libc::EINTR | libc::EAGAIN) => {
                self.fruitless += 1;
                match self.fruitless {
                    ..MAX_FRUITLESS => Next::Again,
                    _ => Next::End(JobEnd::Failed(errno)),
                }
            }
            libc::EOPNOTSUPP | libc::ENOSYS if self.worse_zeroing() => Next::Again,
            errno => Next::End(JobEnd::Failed(errno)),
        }
    }

    /// How it ends if it is taken back between two steps. Not at all if the disk holds a part of
    /// it and the end must be known.
    pub(super) fn give_up(&self, held: bool) -> Option<JobEnd> {
        match self.done {
            0 => Some(JobEnd::Cancelled),
            _ if !self.kind.changes_disk() => Some(JobEnd::Cancelled),
            _ => held.then_some(JobEnd::Unknown),
        }
    }

    /// To be called before anybody is told of the end, and when nothing is under way.
    pub(super) fn note_written(&self) {
        if self.kind == JobKind::Read {
            self.buffers.note_written();
        }
    }

    fn advance(&mut self, result: usize, with: &Context<'_>) -> Next {
        let left = self.extent.len - self.done;
        let progress = match (&self.memory, self.kind) {
            // These are done at one go.
            (Memory::None, _) => left,
            (Memory::Bounce { buffer, head, want }, JobKind::Read) => {
                let got = result.saturating_sub(*head).min(*want);
                self.buffers
                    .copy_in(self.done, &buffer.bytes()[*head..*head + got]);
                got as u64
            }
            (_, JobKind::Read) => (result as u64).min(left),
            // The next step must begin where a direct write can.
            _ => {
                let result = (result as u64).min(left);
                result - result % with.image.alignment.disk as u64
            }
        };
        self.done += progress;
        if self.done >= self.extent.len {
            return Next::End(JobEnd::Done);
        }
        if progress == 0 {
            // The file has become shorter than it was, or its storage is full of surprises.
            return Next::End(JobEnd::Failed(libc::EIO));
        }
        self.fruitless = 0;
        match self.unwanted.then(|| self.give_up(with.held)).flatten() {
            Some(end) => Next::End(end),
            None => Next::Again,
        }
    }

    fn worse_zeroing(&mut self) -> bool {
        let worse = match (self.kind, self.zeroing) {
            (JobKind::WriteZeroes { .. }, Zeroing::Punch) => Zeroing::Range,
            (JobKind::WriteZeroes { .. }, Zeroing::Range) => Zeroing::Write,
            _ => return false,
        };
        self.zeroing = worse;
        true
    }

    /// What is left of the guest's memory, and whether all may go as it is.
    fn runs(&self, alignment: Alignment) -> (Runs, bool) {
        let mut skip = self.done as usize;
        let mut runs = self.buffers.iovecs();
        runs.retain_mut(|run| {
            let cut = skip.min(run.iov_len);
            run.iov_base = run.iov_base.wrapping_byte_add(cut);
            run.iov_len -= cut;
            skip -= cut;
            run.iov_len > 0
        });
        runs.truncate(MAX_RUNS);
        let aligned = self.at().is_multiple_of(alignment.disk as u64)
            && runs.iter().all(|run| {
                run.iov_base.addr().is_multiple_of(alignment.memory)
                    && run.iov_len.is_multiple_of(alignment.disk)
            });
        (Runs(runs), aligned)
    }

    fn direct(&mut self, fd: types::Fd, runs: Runs) -> squeue::Entry {
        let (pointer, count) = (runs.0.as_ptr(), runs.0.len() as u32);
        let offset = self.at();
        self.memory = Memory::Runs(runs);
        match self.kind {
            JobKind::Read => opcode::Readv::new(fd, pointer, count)
                .offset(offset)
                .build(),
            _ => opcode::Writev::new(fd, pointer, count)
                .offset(offset)
                .build(),
        }
    }

    fn bounced(&mut self, fd: types::Fd, alignment: Alignment) -> Result<squeue::Entry, i32> {
        let at = self.at();
        let left = usize::try_from(self.extent.len - self.done).unwrap_or(usize::MAX);
        let head = (at % alignment.disk as u64) as usize;
        let want = left.min(MAX_BOUNCE - head);
        let len = (head + want).next_multiple_of(alignment.disk);
        let mut buffer = Aligned::new(len, alignment.memory.max(alignment.disk));
        let pointer = buffer.as_mut_ptr();
        let start = at - head as u64;
        let entry = if self.kind == JobKind::Read {
            opcode::Read::new(fd, pointer, len as u32)
                .offset(start)
                .build()
        } else if head + want == len && head == 0 {
            self.buffers.copy_out(self.done, buffer.bytes_mut());
            opcode::Write::new(fd, pointer, len as u32)
                .offset(start)
                .build()
        } else {
            // To read what is around it and write it back could undo another write.
            return Err(libc::EINVAL);
        };
        self.memory = Memory::Bounce { buffer, head, want };
        Ok(entry)
    }

    fn write_zeros(&mut self, fd: types::Fd, with: &Context<'_>) -> Result<squeue::Entry, i32> {
        let len = (self.extent.len - self.done).min(MAX_BOUNCE as u64);
        let unit = with.image.alignment.disk as u64;
        if !self.at().is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(libc::EINVAL);
        }
        let pointer = with.zeros.bytes().as_ptr();
        self.memory = Memory::Zeros(with.zeros.clone());
        Ok(opcode::Write::new(fd, pointer, len as u32)
            .offset(self.at())
            .build())
    }

    /// Where on the disk it goes on.
    fn at(&self) -> u64 {
        self.extent.offset + self.done
    }
}

#[cfg(test)]
mod tests;
