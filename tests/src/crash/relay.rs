//! The network between two VM processes: TCP connections that the harness can cut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    /// Both ends of every connection, by number.
    open: Vec<(u64, [TcpStream; 2])>,
    next: u64,
    /// Connections that are yet to be refused.
    refuse: u32,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's documentation. Ends all connections when dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

fn cut(ends: &[TcpStream; 2]) {
    for end in ends {
        // One that is gone already is as good.
        let _ = end.shutdown(Shutdown::Both);
    }
}

impl Relay {
    /// Between whoever connects here and `to`.
    ///
    /// # Errors
    /// As the system says.
    pub fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                if of_thread.state().ended {
                    return;
                }
                // Who cannot be served finds a closed connection.
                let _ = near.and_then(|near| connect(&of_thread, near, to));
            }
        });
        Ok(Self { address, shared })
    }

    /// Cuts all connections, and refuses the next few.
    pub fn cut(&self, refuse: u32) {
        let mut state = self.shared.state();
        state.refuse = refuse;
        state.open.iter().for_each(|(_, ends)| cut(ends));
    }

    /// Waits until both sides have closed all connections.
    ///
    /// # Errors
    /// In words, where they do not within that time.
    pub fn wait_closed(&self, within: Duration) -> Result<(), String> {
        let open = |state: &mut State| !state.open.is_empty();
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, within, open);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.open.is_empty() {
            true => Ok(()),
            false => Err("connections of a process that is gone stay open".to_owned()),
        }
    }
}

fn connect(shared: &Arc<Shared>, near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut state = shared.state();
    if state.refuse > 0 {
        state.refuse -= 1;
        return Ok(());
    }
    let far = TcpStream::connect(to)?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
    }
    let number = state.next;
    state.next += 1;
    let pairs = [
        (near.try_clone()?, far.try_clone()?),
        (far.try_clone()?, near.try_clone()?),
    ];
    state.open.push((number, [near, far]));
    drop(state);
    let shared = shared.clone();
    thread::spawn(move || {
        let [there, back] = pairs.map(|(from, to)| thread::spawn(move || carry(from, to)));
        let _ = (there.join(), back.join());
        shared.state().open.retain(|(n, _)| *n != number);
        shared.changed.notify_all();
    });
    Ok(())
}

/// Until one end has nothing more to say, or the other does not listen.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    match io::copy(&mut from, &mut to) {
        Ok(_) => drop(to.shutdown(Shutdown::Write)),
        Err(_) => cut(&[from, to]),
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.cut(u32::MAX);
        // Wakes the thread that listens.
        let _ = TcpStream::connect(self.address);
    }
}
