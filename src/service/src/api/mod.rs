//! The REST API: HTTP/1.1 on a unix socket, and on TCP with certificates on both sides.
//!
//! Handlers are thin: they check what came ([`check`]), ask the host ([`crate::control::Control`]),
//! and answer JSON, or a problem document. Who may do what is in `caller`. The OpenAPI document
//! is made from the handlers and types, and checked in as docs/openapi.json.

use std::io;
use std::net::SocketAddr;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::control::SharedControl;

mod body;
mod caller;
pub mod check;
mod events;
mod host;
mod listen;
mod migrations;
pub mod openapi;
mod peer;
mod problem;
mod root;
mod routes;
pub mod types;
mod vms;

pub use caller::ADMIN_PREFIX;
pub(crate) use events::KEEP_ALIVE;
pub use listen::{Listen, ListenError, TlsListen};
pub use peer::MAX_SINK;

/// Threads that answer; what takes long is done elsewhere.
const WORKERS: usize = 2;
/// Most connections of one of them.
const MAX_CONNECTIONS: usize = 512;
/// How long requests under way may take when the server stops.
const STOP_SECONDS: u64 = 10;

/// A running API. Stops when it is dropped, without waiting for requests under way.
#[derive(Debug)]
pub struct ApiHandle {
    server: ServerHandle,
    task: JoinHandle<io::Result<()>>,
    stop: watch::Sender<bool>,
    socket: Option<listen::SocketFile>,
    tls: Option<SocketAddr>,
}

/// Listens, and answers from now on: `control` is asked. Has to be
/// called within a tokio runtime, which carries out what is asked for.
///
/// # Errors
/// [`ListenError`]: in words, with what to do.
pub fn serve(control: SharedControl, listen: Listen) -> Result<ApiHandle, ListenError> {
    if listen == Listen::default() {
        return Err(ListenError::Nowhere);
    }
    let (stop, stopping) = watch::channel(false);
    let host = host::Host::new(control, stopping);
    let failed = |source| ListenError::System {
        at: "the API".to_owned(),
        what: "cannot listen",
        source,
    };
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(host.clone()))
            .wrap(from_fn(routes::gate))
            .configure(routes::routes)
    })
    .on_connect(caller::Caller::note)
    .workers(WORKERS)
    .max_connections(MAX_CONNECTIONS)
    .shutdown_timeout(STOP_SECONDS)
    .disable_signals();
    let mut tls = None;
    if let Some(asked) = &listen.tls {
        let (listener, config) = listen::tls(asked)?;
        tls = listener.local_addr().ok();
        server = server
            .listen_rustls_0_23(listener, config)
            .map_err(failed)?;
    }
    let mut socket = None;
    if let Some(path) = &listen.unix {
        let (listener, file) = listen::unix(path)?;
        socket = Some(file);
        server = server.listen_uds(listener).map_err(failed)?;
    }
    let server = server.run();
    Ok(ApiHandle {
        server: server.handle(),
        task: tokio::spawn(server),
        stop,
        socket,
        tls,
    })
}

impl ApiHandle {
    /// Where it listens on TCP, with the port that was taken.
    #[must_use]
    pub const fn tls_address(&self) -> Option<SocketAddr> {
        self.tls
    }

    /// Accepts nothing more, ends the event streams, lets requests under way finish (10 s), and
    /// removes the socket.
    pub async fn stop(mut self) {
        // First the socket, so that nobody finds it and is refused.
        self.socket = None;
        self.stop.send_replace(true);
        self.server.stop(true).await;
        let _ = (&mut self.task).await;
    }

    /// Waits for the end of the server, which comes by itself only if something is wrong.
    ///
    /// # Errors
    /// What it ended with.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.task).await.map_err(io::Error::other)?
    }
}

impl Drop for ApiHandle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // The command is on its way when this returns; nobody waits for its end.
        drop(self.server.stop(false));
    }
}
