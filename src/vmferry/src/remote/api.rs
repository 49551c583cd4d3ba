//! What a host service can be asked for, as the commands see it, and what goes wrong then.

use std::fmt::Display;
use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use thiserror::Error;
use vmferry_engine::report::MigrationReport;
use vmferry_service::model::{
    ConsoleOutput, Decision, Drain, DrainRequest, HostInfo, Migration, MigrationRequest,
    MigrationStarted, Preflight, ServiceEvent, Vm, VmSpec,
};

/// Why a host service did not do what it was asked for. One line each: what, why, what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum RemoteError {
    /// Nobody answers.
    #[error("cannot reach the host service at {address}: {why}; {todo}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        why: String,
        /// What to do.
        todo: String,
    },
    /// It answers that it could not be done: the problem document.
    #[error("{}", if detail.is_empty() { title } else { detail })]
    Problem {
        /// HTTP status.
        status: u16,
        /// What sort of problem.
        title: String,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// It answers something else than its API says.
    #[error(
        "the host service at {address} gave an answer that is not understood: {why}; is it of \
             another version? `vmferry host show` says which"
    )]
    Garbled {
        /// Whose answer.
        address: String,
        /// What is wrong with it.
        why: String,
    },
}

const NOT_FOUND: u16 = 404;

impl RemoteError {
    /// Nobody could be reached at `address`, a socket of this machine where `here`; says whether
    /// the service runs, as far as that can be seen.
    pub(super) fn unreachable(address: &dyn Display, here: bool, error: &io::Error) -> Self {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied, TimedOut};
        let start = "start it with `vmferry serve`, or name another host with --host";
        let (why, todo) = match (error.kind(), here) {
            (NotFound, true) => (
                "there is no such socket, so it does not run here".to_owned(),
                start,
            ),
            (ConnectionRefused, true) => (
                "the socket is there, but the service does not run any more".to_owned(),
                start,
            ),
            (ConnectionRefused, false) => (
                "nothing listens there".to_owned(),
                "see that the service runs there and listens on this port for https",
            ),
            (PermissionDenied, true) => (
                "no permission to use the socket".to_owned(),
                "the service runs; join the group that owns the socket, or run as root",
            ),
            (TimedOut, false) => (
                "no answer in time".to_owned(),
                "see that the host is up, and that no firewall is in the way",
            ),
            (_, true) => (error.to_string(), "see what the service logs"),
            (_, false) => (
                error.to_string(),
                "see that its name is right, and that --cert, --key and --ca are of the hosts' own \
                 authority",
            ),
        };
        Self::Unreachable {
            address: address.to_string(),
            why,
            todo: todo.to_owned(),
        }
    }

    /// Whether there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem { status, .. } if *status == NOT_FOUND)
    }

    /// Whether asking again may help: the service may be starting anew.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Problem { status: 500.., .. }
        )
    }
}

pub(super) type Result<T> = std::result::Result<T, RemoteError>;

/// What a stream of events brings.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Happening {
    /// Something has happened.
    Event(Box<ServiceEvent>),
    /// Some events were lost, as they were not taken in time.
    Missed,
}

/// Events as they happen, until the connection ends. An error is its last item.
pub(super) type Happenings = Pin<Box<dyn Stream<Item = Result<Happening>> + Send>>;

/// A host service. Calls answer as the service does; none waits longer than the connection's own
/// time limit.
#[async_trait]
pub(super) trait Remote: Send + Sync {
    async fn host(&self) -> Result<HostInfo>;

    async fn vms(&self) -> Result<Vec<Vm>>;
    async fn vm(&self, name: &str) -> Result<Vm>;
    async fn create(&self, spec: &VmSpec) -> Result<Vm>;
    async fn pause(&self, name: &str) -> Result<Vm>;
    async fn resume(&self, name: &str) -> Result<Vm>;
    async fn stop(&self, name: &str) -> Result<Vm>;
    async fn start(&self, name: &str) -> Result<Vm>;
    async fn delete(&self, name: &str) -> Result<()>;
    /// The guest's verdict.
    async fn verify(&self, name: &str) -> Result<String>;
    /// How many writes were vouched for.
    async fn settle_storage(&self, name: &str, nobody_else_writes: bool) -> Result<u64>;
    async fn decide(&self, name: &str, decision: Decision) -> Result<()>;
    async fn console(&self, name: &str, most_bytes: u64) -> Result<ConsoleOutput>;

    async fn preflight(&self, name: &str, request: &MigrationRequest) -> Result<Preflight>;
    async fn migrate(&self, name: &str, request: &MigrationRequest) -> Result<MigrationStarted>;
    async fn migrations(&self) -> Result<Vec<Migration>>;
    async fn migration(&self, id: &str) -> Result<Migration>;
    async fn report(&self, id: &str) -> Result<MigrationReport>;
    /// As OTLP has it.
    async fn trace(&self, id: &str) -> Result<serde_json::Value>;
    async fn cancel(&self, id: &str) -> Result<Migration>;

    async fn drain(&self, request: &DrainRequest) -> Result<Drain>;
    async fn drain_state(&self) -> Result<Drain>;
    async fn cancel_drain(&self) -> Result<Drain>;

    async fn events(&self) -> Result<Happenings>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_says_whether_the_service_runs_and_what_to_do() {
        let said = |kind: io::ErrorKind, here| {
            RemoteError::unreachable(&"unix:/s", here, &io::Error::from(kind)).to_string()
        };
        assert_eq!(
            said(io::ErrorKind::NotFound, true),
            "cannot reach the host service at unix:/s: there is no such socket, so it does not run \
             here; start it with `vmferry serve`, or name another host with --host"
        );
        assert!(said(io::ErrorKind::ConnectionRefused, true).contains("does not run any more"));
        assert!(said(io::ErrorKind::PermissionDenied, true).contains("the service runs; join"));
        assert!(said(io::ErrorKind::ConnectionRefused, false).contains("nothing listens there"));
        assert!(said(io::ErrorKind::InvalidData, false).contains("--ca"));
    }

    #[test]
    fn a_problem_is_said_in_its_own_words() {
        let problem = |detail: &str| RemoteError::Problem {
            status: 404,
            title: "Not Found".to_owned(),
            detail: detail.to_owned(),
        };
        assert_eq!(
            problem("there is no machine web-1").to_string(),
            "there is no machine web-1"
        );
        assert_eq!(problem("").to_string(), "Not Found");
        assert!(problem("").is_not_found() && !problem("").may_pass());
    }
}
