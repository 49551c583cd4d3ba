//! What the service manager is told: sd_notify(3), over the datagram socket that it names in
//! `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Tells a service manager how this service is; does nothing where there is none. Never waits, and
/// never fails: what cannot be told is logged.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    to: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment of this process says.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    /// As variables say that `variable` looks up, for the process `own`.
    fn from_variables(variable: impl Fn(&str) -> Option<std::ffi::OsString>, own: u32) -> Self {
        let Some(path) = variable("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Self::default();
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // The watchdog may be meant for another process, which has passed its environment on.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(own));
        let watchdog = number("WATCHDOG_USEC").filter(|&us| us > 0 && ours);
        match connect(&path) {
            Ok(socket) => Self {
                to: Some(Arc::new(socket)),
                watchdog: watchdog.map(Duration::from_micros),
            },
            Err(error) => {
                tracing::warn!(%error, ?path, "the service manager cannot be told anything");
                Self::default()
            }
        }
    }

    /// How often to call [`Notifier::alive`]: twice in the time that the manager allows. None where
    /// it does not wait for it.
    #[must_use]
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.map(|most| most / 2)
    }

    /// The service can be used, or has reloaded.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// It reads its configuration again; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let us = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// It is alive.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.to else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

/// A status with several lines would be taken for several variables.
fn line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

/// `@NAME` is an abstract socket.
fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(path)?,
        _ => {
            return Err(io::Error::other(
                "neither an absolute path nor an abstract name",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    fn notifier(variables: &[(&str, &str)]) -> Notifier {
        let variables: BTreeMap<String, OsString> = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.into()))
            .collect();
        Notifier::from_variables(|name| variables.get(name).cloned(), 42)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    fn speaks(notifier: &Notifier, manager: &UnixDatagram) {
        notifier.ready("running\nMAINPID=1");
        assert_eq!(heard(manager), "READY=1\nSTATUS=running MAINPID=1");
        notifier.reloading();
        let said = heard(manager);
        let us = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(us.parse::<u64>().unwrap() > 0);
        notifier.alive();
        assert_eq!(heard(manager), "WATCHDOG=1");
        notifier.stopping();
        assert_eq!(heard(manager), "STOPPING=1");
    }

    #[test]
    fn a_manager_hears_everything_on_a_socket_with_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        speaks(
            &notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]),
            &manager,
        );
    }

    #[test]
    fn a_manager_hears_everything_on_an_abstract_socket() {
        let name = format!("vmferry-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        speaks(
            &notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]),
            &manager,
        );
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        for variables in [
            &[][..],
            &[("NOTIFY_SOCKET", "")],
            &[("NOTIFY_SOCKET", "relative")],
            &[("NOTIFY_SOCKET", "/nowhere/at/all")],
        ] {
            let notifier = notifier(variables);
            notifier.ready("running");
            notifier.alive();
            assert_eq!(notifier.watchdog_every(), None);
        }
    }

    #[test]
    fn a_manager_that_has_gone_or_does_not_read_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
        // More than a datagram socket keeps.
        for _ in 0..10_000 {
            notifier.alive();
        }
        assert_eq!(heard(&manager), "WATCHDOG=1");
        drop(manager);
        notifier.alive();
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_and_only_if_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let every = |pid: Option<&str>, us: &str| {
            let path = path.to_str().unwrap();
            let mut variables = vec![("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", us)];
            variables.extend(pid.map(|pid| ("WATCHDOG_PID", pid)));
            notifier(&variables).watchdog_every()
        };
        let half = Some(Duration::from_secs(15));
        assert_eq!(every(None, "30000000"), half);
        assert_eq!(every(Some("42"), "30000000"), half);
        assert_eq!(every(Some("41"), "30000000"), None);
        assert_eq!(every(None, "0"), None);
        assert_eq!(every(None, "soon"), None);
    }
}
