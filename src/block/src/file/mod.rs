//! Raw images and block devices, by io_uring.

mod aligned;
mod image;
mod job;
mod ring;

use std::collections::{HashMap, VecDeque};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use vmferry_protocol::storage::{JobEnd, JobId};

use aligned::Aligned;
pub use image::Caching;
use image::Image;
use job::{Context, Job, MAX_BOUNCE, Next};
use ring::{MAX_IN_FLIGHT, Ring};

use crate::detached::finish_elsewhere;
use crate::lock::Claim;
use crate::{BlockBackend, Completion, FormerOwner, Geometry, OpenError, Operation, Role};

/// Memory of our own for operations in flight whose buffers the kernel does not take.
const MAX_BOUNCED: usize = 64 << 20;

/// A raw image or block device.
///
/// Direct (`O_DIRECT`) where the file system can; guest memory that is not aligned for it goes
/// through memory of our own. A write that is not aligned on the disk fails with `EINVAL`, as
/// [`Geometry::block_size`] tells.
///
/// The kernel does some operations (flushes, discards, all of some file systems) in worker threads
/// of the thread that has submitted them. When that thread ends before them, it waits in the
/// kernel for those that run, and those that had not begun are not done.
///
/// Dropping this is fast: what is in flight keeps memory, file and lock in a thread of its own
/// until it has ended. What the kernel does not have yet is not done.
#[derive(Debug)]
pub struct FileBackend {
    parts: ManuallyDrop<Parts>,
}

#[derive(Debug)]
struct Parts {
    ring: Ring,
    image: Image,
    claim: Claim,
    /// Whether the disk's description says so.
    read_only: bool,
    zeros: Arc<Aligned>,
    held: bool,
    /// Not with the kernel: not begun, or between two steps (those first).
    queue: VecDeque<Job>,
    /// With the kernel, by token.
    flying: HashMap<u64, Job>,
    tokens: HashMap<JobId, u64>,
    next_token: u64,
    bounced: usize,
    ended: Vec<Completion>,
}

impl FileBackend {
    /// Opens the image or block device `path` and claims it.
    ///
    /// # Errors
    /// It is not there, not a disk, or somebody else's; the kernel has no io_uring.
    pub fn open(
        path: &Path,
        read_only: bool,
        role: Role,
        caching: Caching,
    ) -> Result<Self, OpenError> {
        let refused = |why| OpenError {
            disk: format!("file:{}", path.display()),
            why,
        };
        let image = Image::open(path, read_only, role, caching).map_err(refused)?;
        if role == Role::Heir {
            image.may_move(read_only).map_err(refused)?;
        }
        let claim = Claim::take(&image.file, role, read_only).map_err(refused)?;
        let ring = Ring::new().map_err(|e| {
            refused(format!(
                "needs io_uring, which cannot be had ({e}): see that kernel.io_uring_disabled is \
                 0, that no seccomp filter forbids it, and that ulimit -l is not tiny"
            ))
        })?;
        let align = image.alignment.memory.max(image.alignment.disk);
        Ok(Self {
            parts: ManuallyDrop::new(Parts {
                zeros: Arc::new(Aligned::new(MAX_BOUNCE, align)),
                ring,
                image,
                claim,
                read_only,
                held: false,
                queue: VecDeque::new(),
                flying: HashMap::new(),
                tokens: HashMap::new(),
                next_token: 0,
                bounced: 0,
                ended: Vec::new(),
            }),
        })
    }
}

impl Parts {
    fn end(&mut self, id: JobId, end: JobEnd) {
        self.ended.push(Completion { id, end });
    }

    /// Gives the kernel as much as it may have.
    fn pump(&mut self) {
        loop {
            match self.ring.is_open() {
                Ok(true) => {}
                Ok(false) => break,
                Err(errno) => {
                    while let Some(job) = self.queue.pop_front() {
                        job.note_written();
                        self.end(job.id, JobEnd::Failed(errno));
                    }
                    break;
                }
            }
            if self.flying.len() >= MAX_IN_FLIGHT || self.bounced >= MAX_BOUNCED {
                break;
            }
            let Some(job) = self.queue.pop_front() else {
                break;
            };
            self.start(job);
        }
    }

    fn start(&mut self, mut job: Job) {
        let with = Context {
            image: &self.image,
            zeros: &self.zeros,
            held: self.held,
        };
        let entry = match job.step(&with) {
            Ok(entry) => entry,
            Err(errno) => {
                job.note_written();
                return self.end(job.id, JobEnd::Failed(errno));
            }
        };
        let token = self.next_token;
        self.next_token += 1;
        self.bounced += job.bounce_bytes();
        self.tokens.insert(job.id, token);
        self.flying.insert(token, job);
        // SAFETY: what the entry refers to is on the heap and in `flying`, where it stays
        // untouched until the ring gives the token back; and so does the file.
        unsafe { self.ring.push(entry, token) };
    }

    /// Jobs whose step is over, and what the kernel said.
    fn landed(&mut self) -> Vec<(Job, i32)> {
        let (mut landed, flying) = (Vec::new(), &mut self.flying);
        self.ring.reap(|token, result| {
            if let Some(job) = flying.remove(&token) {
                landed.push((job, result));
            }
        });
        for (job, _) in &landed {
            self.bounced -= job.bounce_bytes();
            self.tokens.remove(&job.id);
        }
        landed
    }

    fn reap(&mut self) {
        for (mut job, result) in self.landed() {
            let with = Context {
                image: &self.image,
                zeros: &self.zeros,
                held: self.held,
            };
            match job.after(result, &with) {
                Next::Again => self.queue.push_front(job),
                Next::End(end) => {
                    job.note_written();
                    self.end(job.id, end);
                }
            }
        }
        self.pump();
    }

    fn wake_if_ended(&self) {
        if !self.ended.is_empty() {
            self.ring.wake();
        }
    }

    /// Waits for all that the kernel has, and lets go of the disk.
    fn finish(mut self) {
        self.queue.clear();
        while !self.flying.is_empty() {
            for (job, _) in self.landed() {
                job.note_written();
            }
            if !self.flying.is_empty() {
                let mut fds = [PollFd::new(&self.ring, PollFlags::IN)];
                // An interruption is as good as an event.
                let _ = poll(&mut fds, None);
            }
        }
        self.claim.release(&self.image.file);
    }
}

impl BlockBackend for FileBackend {
    fn geometry(&self) -> &Geometry {
        &self.parts.image.geometry
    }

    fn submit(&mut self, operation: Operation) {
        let id = operation.id;
        match Job::new(operation, &self.parts.image.geometry) {
            Ok(job) => {
                self.parts.queue.push_back(job);
                self.parts.pump();
            }
            Err(end) => self.parts.end(id, end),
        }
        self.parts.wake_if_ended();
    }

    fn cancel(&mut self, id: JobId) {
        let parts = &mut *self.parts;
        if let Some(token) = parts.tokens.get(&id) {
            if let Some(job) = parts.flying.get_mut(token) {
                job.unwanted = true;
            }
            parts.ring.cancel(*token);
        } else if let Some(at) = parts.queue.iter().position(|job| job.id == id) {
            parts.queue[at].unwanted = true;
            if let Some(end) = parts.queue[at].give_up(parts.held) {
                if let Some(job) = parts.queue.remove(at) {
                    job.note_written();
                }
                parts.end(id, end);
            }
        }
        parts.wake_if_ended();
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        self.parts.reap();
        ended.append(&mut self.parts.ended);
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.parts.ring.as_fd()
    }

    /// A file is not lost. But an operation that was cancelled when the disk had a part of it ends
    /// as unknown while held, and is carried on with otherwise.
    fn hold(&mut self, held: bool) {
        self.parts.held = held;
    }

    fn may_move(&self) -> Result<(), String> {
        if self.parts.claim.is_shared() {
            return Err(
                "the VM process that had it before has not let go of it: wait until it has, or end \
                 that process"
                    .to_owned(),
            );
        }
        self.parts.image.may_move(self.parts.read_only)
    }

    fn inherit(&mut self) {
        self.parts.claim.inherit();
    }

    fn former_owner(&mut self) -> FormerOwner {
        let parts = &mut *self.parts;
        match parts.claim.former_owner_gone(&parts.image.file) {
            true => FormerOwner::Gone,
            false => FormerOwner::There,
        }
    }
}

impl Drop for FileBackend {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
        let parts = unsafe { ManuallyDrop::take(&mut self.parts) };
        if parts.flying.is_empty() {
            return parts.finish();
        }
        finish_elsewhere("file-disk-end", parts, Parts::finish);
    }
}
