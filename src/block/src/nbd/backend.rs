//! [`NbdBackend`]: the caller's side. Everything is handed to the disk's IO thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use rustix::event::{EventfdFlags, eventfd};
use vmferry_protocol::storage::JobId;

use super::dial::{self, Dialled, PATIENCE};
use super::proto::{Export, flag};
use super::uri::NbdUri;
use super::worker::Worker;
use crate::{BlockBackend, Completion, Geometry, OpenError, Operation};

/// Connections to a server that allows several, unless the URI says how many.
const CONNECTIONS: u8 = 4;

/// What the IO thread is told.
#[derive(Debug)]
pub(super) enum Order {
    Submit(Operation),
    Cancel(JobId),
    Hold(bool),
    Dialled(Result<Dialled, String>),
    Close,
}

/// Between the caller, the IO thread and those who dial.
pub(super) struct Shared {
    orders: Mutex<Vec<Order>>,
    /// Readable when there are orders.
    wake: OwnedFd,
    ended: Mutex<Vec<Completion>>,
    /// Readable when something has ended.
    ready: OwnedFd,
}

impl Shared {
    fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            orders: Mutex::default(),
            wake: eventfd(0, flags)?,
            ended: Mutex::default(),
            ready: eventfd(0, flags)?,
        })
    }

    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn order(&self, order: Order) {
        let mut orders = lock(&self.orders);
        orders.push(order);
        if orders.len() == 1 {
            signal(&self.wake);
        }
    }

    /// Takes all orders into `into`, which is empty.
    pub(super) fn orders(&self, into: &mut Vec<Order>) {
        let mut orders = lock(&self.orders);
        if !orders.is_empty() {
            clear(&self.wake);
            std::mem::swap(&mut *orders, into);
        }
    }

    /// Tells of what has ended, and empties it.
    pub(super) fn publish(&self, news: &mut Vec<Completion>) {
        if news.is_empty() {
            return;
        }
        let mut ended = lock(&self.ended);
        if ended.is_empty() {
            signal(&self.ready);
        }
        ended.append(news);
    }

    fn reap(&self, into: &mut Vec<Completion>) {
        let mut ended = lock(&self.ended);
        if !ended.is_empty() {
            clear(&self.ready);
            into.append(&mut ended);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cannot fail: the count is at most one.
fn signal(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

fn clear(fd: &OwnedFd) {
    let _ = rustix::io::read(fd, &mut [0u8; 8]);
}

/// An export of an NBD server as a disk.
pub struct NbdBackend {
    shared: Arc<Shared>,
    geometry: Geometry,
    multi_conn: bool,
    name: String,
}

impl fmt::Debug for NbdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdBackend")
            .field("name", &self.name)
            .field("geometry", &self.geometry)
            .field("multi_conn", &self.multi_conn)
            .finish_non_exhaustive()
    }
}

/// Opens the export that an NBD URI names. Waits for the server, 10 s at most.
///
/// # Errors
/// What is wrong with the URI, the server or the export, with what to do.
pub fn open(uri: &str, read_only: bool) -> Result<NbdBackend, OpenError> {
    let failed = |why| OpenError {
        disk: uri.to_owned(),
        why,
    };
    let parsed = Arc::new(NbdUri::parse(uri).map_err(failed)?);
    let first = dial_in_time(&parsed).map_err(failed)?;
    let export = first.export;
    let geometry = geometry(&export, read_only).map_err(failed)?;
    let shared = Shared::new().map_err(|e| failed(format!("no eventfd: {e}")))?;
    let shared = Arc::new(shared);
    let connections = connections(&parsed, &export, &geometry);
    let worker = Worker::new(shared.clone(), parsed, first, geometry.clone(), connections)
        .map_err(|e| failed(format!("no epoll: {e}")))?;
    thread::Builder::new()
        .name("nbd-io".to_owned())
        .spawn(move || worker.run())
        .map_err(|e| failed(format!("no thread for the disk's IO: {e}")))?;
    Ok(NbdBackend {
        shared,
        geometry,
        multi_conn: export.has(flag::CAN_MULTI_CONN),
        name: uri.to_owned(),
    })
}

/// Dials on a thread of its own: the resolver cannot be bounded otherwise.
fn dial_in_time(uri: &Arc<NbdUri>) -> Result<Dialled, String> {
    let (send, receive) = sync_channel(1);
    let theirs = uri.clone();
    thread::Builder::new()
        .name("nbd-dial".to_owned())
        .spawn(move || {
            let _ = send.send(dial::dial(&theirs));
        })
        .map_err(|e| format!("no thread to dial from: {e}"))?;
    let grace = Duration::from_secs(1);
    receive
        .recv_timeout(PATIENCE + grace)
        .map_err(|e| match e {
            RecvTimeoutError::Timeout => format!(
                "{} is not found within {} s: check the host's name, and the resolver",
                uri.address,
                PATIENCE.as_secs()
            ),
            RecvTimeoutError::Disconnected => "dialling has failed".to_owned(),
        })?
}

fn geometry(export: &Export, read_only: bool) -> Result<Geometry, String> {
    if !read_only && export.has(flag::READ_ONLY) {
        return Err(
            "the export is read-only: open the disk read-only, or have the server allow \
                    writes"
                .to_owned(),
        );
    }
    let sizes = &export.sizes;
    let grain = u64::from(sizes.minimum.max(512));
    let bytes = export.bytes / grain * grain;
    if bytes == 0 {
        return Err(format!(
            "the export has {} bytes: no disk is that small",
            export.bytes
        ));
    }
    if bytes < export.bytes {
        tracing::warn!(bytes, export = export.bytes, "the last bytes make no block");
    }
    Ok(Geometry {
        bytes,
        block_size: sizes.minimum.max(512),
        read_only,
        flush: export.has(flag::FLUSH) && !read_only,
        discard: export.has(flag::TRIM) && !read_only,
        write_zeroes: export.has(flag::WRITE_ZEROES) && !read_only,
        max_transfer: sizes.maximum,
    })
}

fn connections(uri: &NbdUri, export: &Export, geometry: &Geometry) -> usize {
    let several = export.has(flag::CAN_MULTI_CONN) || geometry.read_only;
    match (uri.connections, several) {
        (Some(1) | None, false) => 1,
        (Some(n), false) => {
            tracing::warn!(
                asked = n,
                "the NBD server does not announce that several connections are coherent: using one"
            );
            1
        }
        (n, true) => usize::from(n.unwrap_or(CONNECTIONS)),
    }
}

impl BlockBackend for NbdBackend {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, operation: Operation) {
        self.shared.order(Order::Submit(operation));
    }

    fn cancel(&mut self, id: JobId) {
        self.shared.order(Order::Cancel(id));
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        self.shared.reap(ended);
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    fn hold(&mut self, held: bool) {
        self.shared.order(Order::Hold(held));
    }

    fn may_move(&self) -> Result<(), String> {
        if self.multi_conn || self.geometry.read_only {
            return Ok(());
        }
        Err(format!(
            "the NBD server of {} does not announce CAN_MULTI_CONN: it may show two hosts different \
             content. Have it do so (nbdkit: a plugin that can, or --filter=multi-conn; qemu-nbd: \
             --shared=2 or more; nbd-server: 3.17 or newer), or open the disk read-only",
            self.name
        ))
    }
}

impl Drop for NbdBackend {
    /// Waits for nothing: the IO thread sees to what is in flight.
    fn drop(&mut self) {
        self.shared.order(Order::Close);
    }
}
