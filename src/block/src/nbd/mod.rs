//! Disks on NBD servers: our own client.
//!
//! [`uri`] says where; [`proto`] is the protocol, pure; [`open`] dials, negotiates, and starts the
//! disk's IO thread, the only one that touches its sessions. The caller's calls put orders into a
//! list and take ends from another: none of them waits for the server, whatever it does.
//!
//! # Lost servers
//!
//! A session that is lost is begun again, for ever, after 50 ms to 1 s, and what was in flight is
//! asked again: the same bytes to the same place. That is safe only if the old session's copy of
//! a write cannot land after the new one's, and after a newer write to the same place that the
//! guest makes once it was told of the first. So a write (a trim, a zeroing) is asked again when
//! the *server has closed* the old session, and not before:
//!
//! - The end of the server's bytes is not enough: it may have closed one direction, and be at work
//!   on what came by the other. We send a goodbye then. A closed socket answers with a reset, or
//!   refuses it.
//! - Servers finish or drop what is in flight before they close: nbdkit and nbd-server wait for
//!   their threads, and the kernel closes a killed process's sockets after its last system call.
//!   qemu-nbd, when it is told to end, shuts its sockets before its requests are over, but keeps
//!   the image's lock until they are. A server that closes, goes on writing, and lets another have
//!   the image defeats this; so does a network that forges resets.
//! - We close no connection by a timer. TCP probes idle connections, so that a server's host that
//!   has forgotten them answers with a reset; silence ends them after 24 days only. If a
//!   connection ends in another way (after those days, or by an administrator's hand), nobody
//!   knows: the changes in flight there do not end, which is logged as an error.
//! - A session in which the server breaks the protocol is left: we say goodbye, read nothing more,
//!   and wait for it to close. Reads and flushes harm nobody, and are asked elsewhere at once.
//! - A server that answers `ESHUTDOWN` has not done it: it is asked again in the next session.
//!
//! An export that has become smaller, or can do less, is not taken back: what waits fails with
//! `EIO` until it is as it was. A server that loses power loses what it had not made stable; the
//! next flush does not tell, as with any NBD client that reconnects.
//!
//! # Held
//!
//! A disk that is [held](crate::BlockBackend::hold) does not dial. What is in flight ends by its
//! reply, or as unknown when its session is over as above. A disk that is dropped sees to
//! what was sent until it is over, with its memory kept; then it says goodbye. If the server
//! hangs, that is when it goes on, or with the process.
//!
//! # Several hosts
//!
//! A server that announces `CAN_MULTI_CONN` shows all its clients the same content, and a flush of
//! one covers the writes of all: several connections of one disk, and a second host, are safe
//! there. NBD has no locks and tells nobody of other clients: whether the former owner of a disk
//! has let go is known to that host only, by its sessions' ends, so that
//! [`former_owner`](crate::BlockBackend::former_owner) is always unknown. If that host is lost, an
//! operator has to make sure.

mod backend;
mod connection;
mod dial;
mod jobs;
mod outgoing;
pub mod proto;
mod session;
mod tls;
pub mod uri;
mod worker;

pub use backend::{NbdBackend, open};
