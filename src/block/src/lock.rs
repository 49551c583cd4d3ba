//! Whose disk it is: locks on two bytes of the file, far beyond its data.
//!
//! Byte OWNER is the owner's. Byte HEIR is held by the destination of a migration for as long as
//! the owner has the other one. Whoever begins anew needs both, so a disk is never free between
//! its owner and its heir; whoever backs out of a migration gives up HEIR, and the owner was
//! never without its lock. Machines that only read share OWNER.
//!
//! These are *open file description* locks. Such a lock belongs to the `struct file`, not to the
//! process: it goes when the last reference to that goes, or when it is unlocked. Every request
//! that io_uring has accepted holds a reference until it has ended. So a process that dies, even
//! by SIGKILL, has closed its descriptors long before, but its lock stays until the last request
//! of its is through: that the lock can be had is proof that nothing of the former owner is in
//! flight. (A FUSE file system that is slow on purpose shows it in `tests/locks.rs`.) A child
//! process has a share in it between fork and exec, so a lock is given up in words where that can
//! be, and not by closing alone.
//!
//! Locks are advisory: they keep out others of this program, not a stray `dd`. Over NFS version 4
//! the server keeps them, so they hold between hosts, and a client that has died loses its locks
//! when its lease runs out, whereafter the server takes no writes of its any more. NFS version 3
//! needs a lock manager; mounted with `nolock` or `local_lock`, locks hold on one host only. So
//! do locks on block devices: two hosts that share a LUN do not see each other's.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::Role;

const OWNER: i64 = 1 << 62;
const HEIR: i64 = OWNER + 1;

/// What one open file has of the two bytes. Whoever drops it closes the file as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing, and needs nothing: it is there to look.
    Nothing,
    /// A share of OWNER: it reads only.
    Reader,
    /// OWNER.
    Owner,
    /// HEIR; `inherited` says that the disk is its own although OWNER is not, yet.
    Heir { inherited: bool },
}

#[derive(Clone, Copy)]
enum Kind {
    Shared = libc::F_RDLCK as isize,
    Exclusive = libc::F_WRLCK as isize,
    None = libc::F_UNLCK as isize,
}

impl Claim {
    /// Takes what a role needs. `file` is open for reading, and for writing unless `read_only`.
    pub(crate) fn take(file: &File, role: Role, read_only: bool) -> Result<Self, String> {
        match role {
            Role::Inspector => Ok(Self::Nothing),
            Role::Owner | Role::Heir if read_only => {
                demand(
                    file,
                    OWNER,
                    Kind::Shared,
                    "is being written by another machine: stop that, or give it its own disk",
                )?;
                Ok(Self::Reader)
            }
            Role::Owner => {
                demand(
                    file,
                    OWNER,
                    Kind::Exclusive,
                    "is in use by another machine: stop that, or give this one its own disk",
                )?;
                // Until the file is closed OWNER is held, also when the next line fails.
                demand(
                    file,
                    HEIR,
                    Kind::Exclusive,
                    "is about to be taken over by a machine that migrates: wait for its end, or \
                     cancel it",
                )?;
                release(file, HEIR);
                Ok(Self::Owner)
            }
            Role::Heir => {
                demand(
                    file,
                    HEIR,
                    Kind::Exclusive,
                    "has an heir already: another migration of its machine is under way, or the \
                     one before is not over until its source has let go; wait, or cancel it",
                )?;
                Ok(Self::Heir { inherited: false })
            }
        }
    }

    /// The disk is ours from now on.
    pub(crate) fn inherit(&mut self) {
        if let Self::Heir { inherited } = self {
            *inherited = true;
        }
    }

    /// Whether the former owner has let go. An heir that has inherited becomes the owner by it.
    pub(crate) fn former_owner_gone(&mut self, file: &File) -> bool {
        match self {
            Self::Nothing | Self::Reader | Self::Owner => true,
            Self::Heir { inherited: false } => is_free(file, OWNER),
            Self::Heir { inherited: true } => {
                let gone = lock(file, libc::F_OFD_SETLK, OWNER, Kind::Exclusive).is_ok();
                if gone {
                    // The next heir may come.
                    release(file, HEIR);
                    *self = Self::Owner;
                }
                gone
            }
        }
    }

    /// Whether somebody else owns the disk still, as far as was found out.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Heir { .. })
    }

    /// Gives everything back, at once. Only when nothing is in flight.
    pub(crate) fn release(&mut self, file: &File) {
        *self = Self::Nothing;
        release(file, HEIR);
        release(file, OWNER);
    }
}

fn demand(file: &File, byte: i64, kind: Kind, taken: &str) -> Result<(), String> {
    lock(file, libc::F_OFD_SETLK, byte, kind)
        .map(|_| ())
        .map_err(|e| match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => taken.to_owned(),
            _ => format!(
                "cannot be locked ({e}): put it on a file system with locks; NFS needs version 4, \
                 mounted without nolock"
            ),
        })
}

fn release(file: &File, byte: i64) {
    // Unlocking what is not locked is no error, and there is none that could be acted on.
    let _ = lock(file, libc::F_OFD_SETLK, byte, Kind::None);
}

fn is_free(file: &File, byte: i64) -> bool {
    lock(file, libc::F_OFD_GETLK, byte, Kind::Exclusive).is_ok_and(|l| l == libc::F_UNLCK as i16)
}

/// Returns what the kernel says of the lock's kind.
fn lock(file: &File, command: libc::c_int, byte: i64, kind: Kind) -> io::Result<i16> {
    // All fields are integers; the pid has to be 0.
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for the call, and `lock` is what these commands take.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    match rc {
        0 => Ok(lock.l_type),
        _ => Err(io::Error::last_os_error()),
    }
}
