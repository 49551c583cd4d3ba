//! A disk's IO thread: the only one that touches its sessions.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::backend::{Order, Shared};
use super::dial::{self, Dialled};
use super::jobs::Jobs;
use super::proto::Export;
use super::session::{End, Session};
use super::uri::NbdUri;
use crate::Geometry;

/// Time before a lost server is dialled again: the least and the most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Bytes read at once.
const SCRATCH: usize = 256 << 10;
/// Name of the orders among the epoll set; sessions have other ones.
const ORDERS: u64 = 0;

/// What it takes to have the sessions that are wanted.
#[derive(Debug)]
struct Dialling {
    wanted: usize,
    underway: bool,
    /// Not before.
    at: Instant,
    backoff: Duration,
    /// It was said that the server is lost.
    warned: bool,
    /// What was found last cannot take the place of what was opened.
    unfit: bool,
}

/// See the module's documentation.
pub(super) struct Worker {
    shared: Arc<Shared>,
    uri: Arc<NbdUri>,
    /// What was opened.
    export: Export,
    epoll: OwnedFd,
    sessions: Vec<(u64, Session)>,
    next_name: u64,
    jobs: Jobs,
    dialling: Dialling,
    closing: bool,
    orders: Vec<Order>,
    scratch: Vec<u8>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        uri: Arc<NbdUri>,
        first: Dialled,
        geometry: Geometry,
        wanted: usize,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let name = epoll::EventData::new_u64(ORDERS);
        epoll::add(&epoll, shared.wake(), name, epoll::EventFlags::IN)?;
        let mut worker = Self {
            shared,
            uri,
            export: first.export,
            epoll,
            sessions: Vec::new(),
            next_name: ORDERS + 1,
            jobs: Jobs::new(geometry),
            dialling: Dialling {
                wanted,
                underway: false,
                at: Instant::now(),
                backoff: BACKOFF.0,
                warned: false,
                unfit: false,
            },
            closing: false,
            orders: Vec::new(),
            scratch: vec![0; SCRATCH],
        };
        worker.add(first)?;
        Ok(worker)
    }

    /// Until it is closed and everything in flight is over.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(32);
        loop {
            self.obey();
            self.bury();
            self.send();
            // Writing may have shown an end.
            self.bury();
            if self.closing && self.sessions.iter().all(|(_, s)| s.load() == 0) {
                for (_, session) in &mut self.sessions {
                    session.part(&mut self.jobs);
                }
                return;
            }
            self.shared.publish(self.jobs.ended());
            self.redial();
            self.wait(&mut events);
            for (_, session) in &mut self.sessions {
                if session.readable {
                    session.receive(&mut self.jobs, &mut self.scratch);
                }
            }
        }
    }

    fn up(&self) -> usize {
        self.sessions.iter().filter(|(_, s)| s.is_up()).count()
    }

    fn add(&mut self, dialled: Dialled) -> io::Result<()> {
        use epoll::EventFlags as On;
        let name = self.next_name;
        self.next_name += 1;
        let session = Session::new(dialled);
        let data = epoll::EventData::new_u64(name);
        epoll::add(
            &self.epoll,
            session.wire(),
            data,
            On::IN | On::OUT | On::RDHUP | On::ET,
        )?;
        self.sessions.push((name, session));
        Ok(())
    }

    fn obey(&mut self) {
        let mut orders = std::mem::take(&mut self.orders);
        self.shared.orders(&mut orders);
        for order in orders.drain(..) {
            match order {
                Order::Submit(operation) => self.jobs.submit(operation),
                Order::Cancel(id) => self.jobs.cancel(id),
                Order::Hold(held) => {
                    let up = self.up();
                    self.jobs.hold(held, up);
                }
                Order::Dialled(result) => self.dialled(result),
                Order::Close => {
                    self.closing = true;
                    self.jobs.close();
                }
            }
        }
        self.orders = orders;
    }

    /// Hands out what waits, each piece to the session with the least to do, and writes.
    fn send(&mut self) {
        loop {
            while self.jobs.is_waiting() {
                let with_room = self.sessions.iter_mut().filter(|(_, s)| s.has_room());
                let Some((_, session)) = with_room.min_by_key(|(_, s)| s.load()) else {
                    break;
                };
                let Some(piece) = self.jobs.next(session.max_payload()) else {
                    break;
                };
                session.send(piece);
            }
            for (_, session) in &mut self.sessions {
                session.flush(&mut self.jobs);
            }
            if !self.jobs.is_waiting() || !self.sessions.iter().any(|(_, s)| s.has_room()) {
                return;
            }
        }
    }

    /// Sees to sessions that have ended, and to what was in flight there.
    fn bury(&mut self) {
        let mut i = 0;
        while let Some((_, session)) = self.sessions.get_mut(i) {
            if std::mem::take(&mut session.useful) {
                self.dialling.backoff = BACKOFF.0;
            }
            let Some((end, pieces)) = session.ended() else {
                i += 1;
                continue;
            };
            self.sessions.swap_remove(i).1.part(&mut self.jobs);
            self.dialling.at = Instant::now() + self.dialling.backoff;
            match end {
                End::Settled => self.jobs.lost(pieces.into_iter()),
                End::Unsettled(error) => self.unsettled(&error, pieces),
            }
        }
        let up = self.up();
        self.jobs.strand(up);
        if self.dialling.unfit && up == 0 && !self.jobs.is_held() {
            self.jobs.fail_waiting(libc::EIO);
        }
    }

    /// A connection is gone, and the server may not know.
    fn unsettled(&mut self, error: &io::Error, pieces: Vec<super::jobs::Piece>) {
        let (change, look): (Vec<_>, Vec<_>) =
            pieces.into_iter().partition(|p| p.kind.changes_disk());
        self.jobs.lost(look.into_iter());
        if !change.is_empty() {
            tracing::error!(
                server = %self.uri.address,
                %error,
                operations = change.len(),
                "a connection was lost, and the server has not closed it: what was in flight may \
                 still happen, and does not end. Make sure that the server has ended the session, \
                 then restart the VM"
            );
        }
    }

    /// Dials if there are too few sessions, it is time, and nobody has hold of the disk.
    fn redial(&mut self) {
        let up = self.up();
        let enough = up >= self.dialling.wanted;
        if enough || self.dialling.underway || self.closing || self.jobs.is_held() {
            return;
        }
        if up == 0 && !self.dialling.warned {
            self.dialling.warned = true;
            tracing::warn!(server = %self.uri.address, "NBD server lost; reconnecting");
        }
        let now = Instant::now();
        if now < self.dialling.at {
            return;
        }
        self.dialling.underway = true;
        let (shared, uri) = (self.shared.clone(), self.uri.clone());
        let dial = move || shared.order(Order::Dialled(dial::dial(&uri)));
        let thread = thread::Builder::new().name("nbd-dial".to_owned());
        if let Err(e) = thread.spawn(dial) {
            self.dialled(Err(format!("no thread to dial from: {e}")));
        }
    }

    fn dialled(&mut self, result: Result<Dialled, String>) {
        self.dialling.underway = false;
        let backoff = self.dialling.backoff;
        self.dialling.at = Instant::now() + backoff;
        self.dialling.backoff = (backoff * 2).min(BACKOFF.1);
        // A disk that is held has lost its server for good.
        if self.closing || self.jobs.is_held() {
            return;
        }
        let fit = result.and_then(|dialled| {
            let fits = dialled.export.replaces(&self.export);
            self.dialling.unfit = fits.is_err();
            fits.map(|()| dialled)
        });
        let added = fit.and_then(|dialled| self.add(dialled).map_err(|e| e.to_string()));
        match added {
            Ok(()) => {
                self.dialling.at = Instant::now();
                if std::mem::take(&mut self.dialling.warned) {
                    tracing::info!(server = %self.uri.address, "NBD server found again");
                }
            }
            Err(why) if self.dialling.unfit => tracing::error!(
                server = %self.uri.address,
                why,
                "the NBD export is not what it was; operations fail until it is"
            ),
            Err(why) => tracing::debug!(server = %self.uri.address, why, "dialled in vain"),
        }
    }

    fn wait(&mut self, events: &mut Vec<epoll::Event>) {
        let waits_to_dial = !self.closing
            && !self.jobs.is_held()
            && !self.dialling.underway
            && self.up() < self.dialling.wanted;
        let can_go_on = self.sessions.iter().any(|(_, s)| s.readable)
            || self.jobs.is_waiting() && self.sessions.iter().any(|(_, s)| s.has_room());
        let timeout = if can_go_on {
            Some(Duration::ZERO)
        } else if waits_to_dial {
            Some(self.dialling.at.saturating_duration_since(Instant::now()))
        } else {
            None
        };
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        events.clear();
        // Interrupted, or nothing: the loop looks anyway.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        );
        for event in events.drain(..) {
            let (name, flags) = (event.data.u64(), event.flags);
            if let Some((_, session)) = self.sessions.iter_mut().find(|(n, _)| *n == name) {
                session.wake(flags.contains(epoll::EventFlags::OUT));
                if flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
                    session.hung_up();
                }
            }
        }
    }
}
