//! A connection: a socket, and TLS over it where the URI wants it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::Socket;

/// Bytes of ciphertext that may wait for the socket.
const TLS_BUFFER: usize = 256 << 10;
/// Most TLS messages without data that are read at once.
const TLS_READS: usize = 64;

/// Bytes to and from a server. While the socket blocks, so do the calls, as long as the socket's
/// timeouts allow; afterwards none does.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, tls: None }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Everything goes through TLS from now on. Nothing has been shaken yet.
    pub(super) fn start_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), rustls::Error> {
        let mut tls = ClientConnection::new(config, name)?;
        tls.set_buffer_limit(Some(TLS_BUFFER));
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// One step of the TLS handshake. Returns whether it is over.
    pub(super) fn shake(&mut self) -> io::Result<bool> {
        self.flush()?;
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_handshaking()) else {
            return Ok(true);
        };
        if tls.read_tls(&mut &self.socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(e) = tls.process_new_packets() {
            // It may want to know why.
            let _ = tls.write_tls(&mut &self.socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, e));
        }
        Ok(false)
    }

    /// Reads some bytes; none at the end. `Interrupted`: there may be more, nothing came yet.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return (&self.socket).read(buffer);
        };
        for _ in 0..TLS_READS {
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // No goodbye before the end: as with a server that is killed.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if tls.read_tls(&mut &self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets()
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Reads bytes of the socket itself, of no use but to see the end.
    pub(super) fn read_raw(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(buffer)
    }

    /// Takes some bytes to send. Without TLS, those have been sent.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return (&self.socket).write(bytes);
        }
        self.flush()?;
        let Some(tls) = &mut self.tls else {
            return Ok(0);
        };
        let taken = tls.writer().write(bytes)?;
        match self.flush() {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// Sends what TLS keeps back.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            tls.write_tls(&mut &self.socket)?;
        }
        Ok(())
    }

    /// Whether TLS ends the session, and the protocol's own goodbye is not to be sent.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// TLS: that nothing more is sent. As far as the socket takes it.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        let _ = self.flush();
    }

    /// TLS, after the server's end: a byte that no TLS accepts, so that the kernel of a server
    /// that is gone answers with a reset.
    pub(super) fn prod(&mut self) -> io::Result<()> {
        (&self.socket).write(&[0]).map(drop)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
