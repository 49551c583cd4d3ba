//! How much of what was written to a TCP socket the peer has not acknowledged.
//!
//! The only `unsafe` of this crate: neither tokio nor socket2 asks the kernel for this.

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// Bytes written to `socket`, and its end if it was shut down, that the peer has not acknowledged.
///
/// # Errors
/// That of the system call.
pub(super) fn outstanding(socket: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (tcp(7): SIOCOUTQ) stores one int; the descriptor is open, as `socket` is
    // borrowed.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}
