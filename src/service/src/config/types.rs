//! The configuration's types. What is written at a field is what `config/host.toml` says of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Limits, MigrationOptions};
use crate::telemetry::Protocol;

/// A host's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host itself.
    pub host: Host,
    /// Its API.
    #[serde(default)]
    pub api: Api,
    /// How machines move.
    #[serde(default)]
    pub migration: Migration,
    /// What it allows.
    #[serde(default)]
    pub limits: Limits,
    /// Hosts that it knows, by name.
    #[serde(default)]
    pub peers: BTreeMap<String, Peer>,
    /// Traces.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Logs.
    #[serde(default)]
    pub log: Log,
}

/// The host itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name, which its certificate bears and other hosts know it by: 1 to 63 lower-case
    /// letters, digits and hyphens; not beginning with "admin-". The only key that has to be given.
    #[schema(example = "host-a")]
    pub name: String,
    /// Where machines, journals, reports and traces are kept. The shorter, the longer a machine's
    /// name may be: both are part of a socket's path, of which Linux takes 107 bytes.
    #[serde(default = "state_dir")]
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
}

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/vmferry")
}

/// The API: how users, and the services of other hosts, reach this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// The unix socket for users of this machine: whoever may open it may do everything.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Address and port for other hosts, and for users elsewhere. Needs [api.tls]: who connects has
    /// to show a certificate of its authority. Off where nothing is said; then nothing can be moved
    /// to this host.
    #[schema(value_type = Option<String>, example = "10.0.0.1:7443")]
    pub listen: Option<SocketAddr>,
    /// Certificates.
    pub tls: Option<Tls>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/vmferry/api.sock"),
            listen: None,
            tls: None,
        }
    }
}

/// This host's certificate and its authority's, as `vmferry keys` makes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the authority that certifies all hosts and users.
    #[schema(value_type = String, example = "keys/ca.pem")]
    pub ca: PathBuf,
    /// PEM file of this host's certificate, which is for host.name.
    #[schema(value_type = String, example = "keys/host-a.pem")]
    pub cert: PathBuf,
    /// PEM file of its key: a secret, mode 0600.
    #[schema(value_type = String, example = "keys/host-a.key")]
    pub key: PathBuf,
}

/// How machines move from and to this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Migration {
    /// Address that the VM processes of incoming machines listen on, each on a port of its own; the
    /// source has to reach it. Where nothing is said: that of api.listen, or 127.0.0.1 if that is
    /// off.
    #[schema(value_type = Option<String>, example = "10.0.0.1")]
    pub listen: Option<IpAddr>,
    /// Certificates, where they differ from those of the API.
    pub tls: Option<Tls>,
    /// First and last port that they take; 0 and 0: any that is free.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
    /// The address as other hosts see it, where it is another, as behind address translation.
    #[schema(value_type = Option<String>, example = "192.0.2.7")]
    pub advertise: Option<IpAddr>,
    /// Directory that disks, kernels and other files of machines from other hosts have to be in,
    /// links followed: another host cannot have this one open another file then. NBD servers are
    /// reached wherever they are. Files may be anywhere, where nothing is said.
    #[schema(value_type = Option<String>, example = "/srv/vms")]
    pub files_in: Option<PathBuf>,
    /// Migrations that are over and remembered, the newest, with their reports and traces.
    pub remembered: u32,
    /// How long a source may take to come once a VM process waits for it, in seconds.
    pub come_within_s: u32,
    /// What holds where a migration is asked for and nothing else is said.
    pub defaults: MigrationOptions,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            listen: None,
            first_port: 0,
            last_port: 0,
            advertise: None,
            files_in: None,
            tls: None,
            remembered: 1000,
            come_within_s: 60,
            defaults: built_in(),
        }
    }
}

/// How a machine is moved where neither the request nor the configuration says anything.
#[must_use]
pub fn built_in() -> MigrationOptions {
    let policy = vmferry_protocol::policy::Limits::default();
    MigrationOptions {
        transport: Some("quic".to_owned()),
        streams: Some(2),
        codec: Some("auto".to_owned()),
        delta_cache_mib: Some((vmferry_engine::source::DELTA_CACHE_BYTES >> 20) as u32),
        tracker: Some("auto".to_owned()),
        group: Some("auto".to_owned()),
        throttle_pct: Some(policy.throttle_pct),
        link_mbit: Some(0),
        max_blackout_ms: Some(policy.max_blackout.as_secs_f64() * 1e3),
        min_passes: Some(policy.min_passes),
    }
}

/// A host that machines may move to. One such section for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Where its API is: its api.listen. The host in it has to be a name or an address in its
    /// certificate.
    #[schema(example = "https://10.0.0.2:7443")]
    pub url: String,
}

/// Traces: one for each migration, kept on this host, and sent to a collector where one is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where a collector takes OTLP. Off where nothing is said.
    #[schema(example = "http://127.0.0.1:4317")]
    pub otlp_endpoint: Option<String>,
    /// How: grpc (port 4317 as a rule), http-protobuf or http-json (4318).
    #[schema(value_type = String)]
    pub otlp_protocol: Protocol,
    /// The service that spans are said to be from.
    pub service_name: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_protocol: Protocol::Grpc,
            service_name: "vmferry".to_owned(),
        }
    }
}

/// The log, on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: error, warn, info, debug, trace; also by module, as in
    /// "info,vmferry_engine=debug".
    pub filter: String,
    /// text or json (a line each).
    #[schema(value_type = String)]
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info,actix_server=warn".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Config {
    /// What a host of this name is without any other key.
    #[must_use]
    pub fn of_host(name: &str) -> Self {
        Self {
            host: Host {
                name: name.to_owned(),
                state_dir: state_dir(),
            },
            api: Api::default(),
            migration: Migration::default(),
            limits: Limits::default(),
            peers: BTreeMap::new(),
            telemetry: Telemetry::default(),
            log: Log::default(),
        }
    }

    /// The address that VM processes listen on.
    #[must_use]
    pub fn migration_address(&self) -> IpAddr {
        let of_api = || self.api.listen.map(|listen| listen.ip());
        let listen = self.migration.listen.or_else(of_api);
        listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The certificates of VM processes; without, nothing can be moved.
    #[must_use]
    pub fn migration_tls(&self) -> Option<&Tls> {
        self.migration.tls.as_ref().or(self.api.tls.as_ref())
    }

    /// Bytes of the path of a machine's socket, but for the machine's name.
    pub(crate) fn socket_path_without_name(&self) -> usize {
        let parts = [crate::host::VMS, "", vmferry_vmm::SOCKET];
        let separated = parts.iter().map(|part| 1 + part.len()).sum::<usize>();
        self.host.state_dir.as_os_str().len() + separated
    }
}
