//! What all handlers share: the host they ask, and how they ask it.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::{FromRequest, HttpRequest, web};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::check::is_migration_id;
use super::problem::Refusal;
use crate::control::{ControlError, SharedControl};
use crate::rules::is_vm_name;

/// Most event streams at once.
pub(super) const MAX_STREAMS: usize = 64;

/// The host, as handlers hold it.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) control: SharedControl,
    /// The service's own runtime: the server's threads come and go.
    runtime: Handle,
    /// True when the server stops: streams end then.
    pub(super) stop: watch::Receiver<bool>,
    /// Places for event streams.
    pub(super) streams: Arc<Semaphore>,
}

impl Host {
    /// Has to be called where the service's runtime is.
    pub(super) fn new(control: SharedControl, stop: watch::Receiver<bool>) -> Self {
        Self {
            control,
            runtime: Handle::current(),
            stop,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    /// Asks the host. What was begun is carried through on the service's runtime, also where the
    /// caller hangs up; a panic is a failure of that request only.
    pub(super) async fn ask<T, F, A>(&self, question: F) -> Result<T, Refusal>
    where
        F: FnOnce(SharedControl) -> A,
        A: Future<Output = Result<T, ControlError>> + Send + 'static,
        T: Send + 'static,
    {
        let asked = self.runtime.spawn(question(self.control.clone()));
        match asked.await {
            Ok(answer) => answer.map_err(Refusal::from),
            Err(e) => {
                tracing::error!("a request failed: {e}");
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "this request was not finished, by a mistake in the service; its log says more",
                ))
            }
        }
    }
}

impl FromRequest for Host {
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // The application is made with it (see `routes`).
        let host = request.app_data::<web::Data<Self>>();
        #[expect(clippy::expect_used, reason = "not to be served without")]
        ready(Ok(host.expect("a host").get_ref().clone()))
    }
}

/// A name in the path, which is only looked for if it can be one.
macro_rules! in_path {
    ($(#[$doc:meta])* $type:ident, $part:literal, $fits:path, $what:literal) => {
        $(#[$doc])*
        pub(super) struct $type(pub(super) String);

        impl FromRequest for $type {
            type Error = Refusal;
            type Future = Ready<Result<Self, Refusal>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                let given = request.match_info().get($part).unwrap_or_default();
                ready(if $fits(given) {
                    Ok(Self(given.to_owned()))
                } else {
                    Err(Refusal::missing(format!(
                        concat!("{:?} names no ", $what),
                        given
                    )))
                })
            }
        }
    };
}

in_path!(
    /// A machine's name.
    VmName,
    "name",
    is_vm_name,
    "machine: they have 1 to 63 lower-case letters, digits and hyphens, no hyphen first"
);
in_path!(
    /// A migration's id.
    MigrationRef,
    "id",
    is_migration_id,
    "migration: they have 32 lower-case hexadecimal digits"
);
