//! Bulk copies over loopback: vmferry's transports beside what they are built of, used directly.
//!
//! Every copy is measured in the same way: connections are made beforehand, then so many streams
//! send frames that do not compress, as fast as they can, and the clock stops when the last byte
//! has been read at the other end.

pub mod ours;
pub mod plain_quic;
pub mod plain_tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use vmferry_transports::keys::{Authority, HostKeys};

/// An error of a benchmark: it just ends.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Content of a frame, in bytes: a chunk of pages.
pub const FRAME: usize = 256 << 10;
/// What goes before it, in bytes: about what a chunk's header takes.
pub const HEADER: usize = 64;
/// The name of the accepting host.
pub const HOST: &str = "bench";

/// What is copied.
#[derive(Clone, Debug)]
pub struct Load {
    /// Streams at the same time.
    pub streams: u16,
    /// Frames of each.
    pub frames: usize,
    header: Bytes,
    content: Bytes,
}

impl Load {
    /// `bytes` in all, rounded down to whole frames for each of `streams`.
    pub fn new(streams: u16, bytes: usize) -> Self {
        // xorshift64: does not compress.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |len: usize| -> Bytes {
            let mut bytes = Vec::with_capacity(len + 8);
            while bytes.len() < len {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_le_bytes());
            }
            bytes.truncate(len);
            bytes.into()
        };
        Self {
            streams,
            frames: bytes / FRAME / usize::from(streams),
            header: random(HEADER),
            content: random(FRAME),
        }
    }

    /// A frame: header and content. Cheap to clone.
    pub fn frame(&self) -> [Bytes; 2] {
        [self.header.clone(), self.content.clone()]
    }

    /// Bytes of a stream.
    pub fn stream_bytes(&self) -> usize {
        self.frames * (HEADER + FRAME)
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        self.stream_bytes() * usize::from(self.streams)
    }
}

/// What a copy took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// From the first byte sent to the last received.
    pub time: Duration,
    /// Processor time of the process, both ends.
    pub cpu: Duration,
}

/// Runs from one moment to another.
#[derive(Debug)]
pub struct Stopwatch {
    time: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts it.
    pub fn start() -> Self {
        Self {
            cpu: cpu_time(),
            time: Instant::now(),
        }
    }

    /// What has passed since it started.
    pub fn stop(self) -> Cost {
        Cost {
            time: self.time.elapsed(),
            cpu: cpu_time().saturating_sub(self.cpu),
        }
    }
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage stores one rusage, and all its bits may be zero.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Any free port of this host.
pub fn here() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Keys for both ends.
///
/// # Errors
/// Not to be expected.
pub fn keys() -> Result<HostKeys, Error> {
    Ok(Authority::new()?.issue(HOST)?)
}

/// Awaits tasks, the first error first.
///
/// # Errors
/// Theirs.
pub async fn join(mut tasks: tokio::task::JoinSet<Result<(), Error>>) -> Result<(), Error> {
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}
