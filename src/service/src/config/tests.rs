//! Loading, checking, rendering and reloading, with files and keys in a directory of the test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::watch;
use vmferry_transports::keys::Authority;

use super::*;
use crate::host::VMS;
use crate::model::MigrationOptions;
use crate::rules::option_problems;

/// A directory with a file, and `keys/` of `host-a`.
struct Place {
    dir: TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    fn with_keys() -> Self {
        let place = Self::new();
        let keys = Authority::new().unwrap().issue("host-a").unwrap();
        keys.write_to(&place.path("keys")).unwrap();
        place
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self, text: &str) -> Source {
        let file = self.path("host.toml");
        std::fs::write(&file, text).unwrap();
        Source {
            file,
            variables: self.variables.clone(),
        }
    }

    fn load(&self, text: &str) -> Result<Config, ConfigProblems> {
        self.source(text).load()
    }

    /// Keys and what is wrong with them.
    fn wrong(&self, text: &str) -> Vec<(String, String)> {
        let problems = self.load(text).unwrap_err().problems;
        problems.into_iter().map(|p| (p.key, p.what)).collect()
    }

    /// The one problem.
    fn only(&self, text: &str) -> (String, String) {
        let mut wrong = self.wrong(text);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        wrong.remove(0)
    }
}

const LEAST: &str = "host.name = 'host-a'\n";
const TLS: &str =
    "tls = { ca = 'keys/ca.pem', cert = 'keys/host-a.pem', key = 'keys/host-a.key' }\n";

#[test]
fn a_name_is_enough() {
    let config = Place::new().load(LEAST).unwrap();
    let mut expected = Config::of_host("host-a");
    expected.migration.listen = Some(expected.migration_address());
    assert_eq!(config, expected);
    assert_eq!(config.host.state_dir, Path::new("/var/lib/vmferry"));
    assert_eq!(config.api.socket, Path::new("/run/vmferry/api.sock"));
    assert_eq!((config.api.listen, config.migration_tls()), (None, None));
}

#[test]
fn what_is_not_said_of_migrations_is_as_built_in() {
    let text = format!("{LEAST}[migration.defaults]\ncodec = 'zstd:3'\nmax_blackout_ms = 50\n");
    let config = Place::new().load(&text).unwrap();
    let expected = MigrationOptions {
        codec: Some("zstd:3".to_owned()),
        max_blackout_ms: Some(50.0),
        ..built_in()
    };
    assert_eq!(config.migration.defaults, expected);
    assert_eq!(option_problems(&expected), []);
}

#[test]
fn paths_are_relative_to_the_file_and_migrations_follow_the_api() {
    let place = Place::with_keys();
    let text = format!("{LEAST}host.state_dir = 'state'\n[api]\nlisten = '127.0.0.2:7443'\n{TLS}");
    let config = place.load(&text).unwrap();
    assert_eq!(config.host.state_dir, place.path("state"));
    let tls = config.api.tls.as_ref().unwrap();
    assert_eq!(tls.key, place.path("keys/host-a.key"));
    assert_eq!(config.migration_tls(), Some(tls));
    assert_eq!(config.migration_address().to_string(), "127.0.0.2");
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let place = Place::new().set("VMFERRY_LIMITS__VMS", "many");
    let text = "\
[host]
name = 'Host_A'
state_dri = 'x'

[api]
listen = 'everywhere'
tls = 5

[limits]
outgoing = -1
incoming = 0
link_mbit = 'fast'

[migration.defaults]
codec = 'rar'
streams = 99

[telemetry]
otlp_protocol = 'smoke'

[log]
filter = '=!='

[peers.host-b]
url = 'http://10.0.0.2'

[storage]
";
    let wrong = place.load(text).unwrap_err();
    let at = |key: &str| {
        let found: Vec<_> = wrong.problems.iter().filter(|p| p.key == key).collect();
        assert_eq!(found.len(), 1, "{key} in {wrong}");
        let at = found[0].at.map(|at| (at.line, at.column));
        (found[0].what.as_str(), at)
    };
    let found = [
        ("host.name", "cannot be a host's name", Some((2, 8))),
        (
            "host.state_dri",
            "did you mean host.state_dir?",
            Some((3, 1)),
        ),
        ("api.listen", "invalid socket address", Some((6, 10))),
        ("api.tls", "takes a section with keys", Some((7, 7))),
        ("limits.outgoing", "from 0 to 4294967295", Some((10, 12))),
        ("limits.incoming", "at least 1", Some((11, 12))),
        ("limits.link_mbit", "a whole number from 0", Some((12, 13))),
        ("limits.vms", "\"many\" is no number", None),
        ("migration.defaults.codec", "zstd", Some((15, 9))),
        ("migration.defaults.streams", "from 1 to 64", Some((16, 11))),
        (
            "telemetry.otlp_protocol",
            "grpc, http-protobuf, http-json",
            Some((19, 17)),
        ),
        ("log.filter", "invalid filter", Some((22, 10))),
        ("peers.host-b.url", "https://", Some((25, 7))),
        ("storage", "there is no such key", Some((27, 2))),
    ];
    for (key, what, place) in found {
        let (said, line) = at(key);
        assert!(said.contains(what), "{key}: {said}");
        assert_eq!(line, place, "{key}");
    }
    assert_eq!(wrong.problems.len(), found.len(), "{wrong}");
    let text = wrong.to_string();
    assert!(text.contains("host.toml:2:8: host.name: "), "{text}");
    assert!(text.contains("VMFERRY_LIMITS__VMS: limits.vms: "), "{text}");
    assert!(
        text.contains("All outgoing migrations together"),
        "what a key is for: {text}"
    );
}

#[test]
fn what_is_no_toml_is_said_with_every_place() {
    let wrong = Place::new()
        .load("host = {\n[api]\nlisten 5\nsocket = 'x\n")
        .unwrap_err();
    assert!(wrong.problems.len() >= 2, "{wrong}");
    assert!(wrong.problems.iter().all(|p| p.at.is_some()), "{wrong}");
    let twice = format!("{LEAST}[log]\nfilter = 'info'\nfilter = 'debug'\n");
    let (_, what) = Place::new().only(&twice);
    assert!(what.contains("duplicate"), "{what}");
}

#[test]
fn a_file_that_is_not_there_is_said_so() {
    let source = Source {
        file: PathBuf::from("/nowhere/host.toml"),
        variables: Vec::new(),
    };
    let wrong = source.load().unwrap_err().to_string();
    assert!(
        wrong.starts_with("/nowhere/host.toml: cannot be read"),
        "{wrong}"
    );
}

#[test]
fn unknown_keys_name_the_nearest() {
    let place = Place::new();
    for (text, near) in [
        ("[api]\nlissen = 1", "api.listen"),
        ("[ap]\nlisten = 1", "api"),
        ("[telemetry]\notlp-endpoint = ''", "telemetry.otlp_endpoint"),
        (
            "[migration]\nthrottle_pct = 1",
            "migration.defaults.throttle_pct",
        ),
        (
            "[peers.b]\nurls = ''\nurl = 'https://b'\n[api]\nfilter = ''",
            "log.filter",
        ),
    ] {
        let wrong = place.wrong(&format!("{LEAST}{text}"));
        assert!(
            wrong
                .iter()
                .any(|(_, what)| what.contains(&format!("did you mean {near}?"))),
            "{text}: {wrong:?}"
        );
    }
    let (_, what) = place.only(&format!("{LEAST}[zzz]\n"));
    assert!(what.contains("config/host.toml has all keys"), "{what}");
}

#[test]
fn what_has_to_be_there_is_missed_once() {
    assert_eq!(Place::new().only("").0, "host.name");
    let wrong = Place::new().wrong(&format!("{LEAST}[api.tls]\nca = 5\n"));
    let keys: Vec<_> = wrong.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["api.tls.cert", "api.tls.key", "api.tls.ca"]);
    assert_eq!(Place::new().only("host = 'host-a'").0, "host");
}

#[test]
fn a_file_full_of_mistakes_comes_to_an_end() {
    let keys: String = (0..1000).map(|n| format!("k{n} = {n}\n")).collect();
    let wrong = Place::new().wrong(&format!("{LEAST}{keys}"));
    assert_eq!(wrong.len(), 200);
}

#[test]
fn the_environment_goes_before_the_file() {
    let place = Place::with_keys()
        .set("VMFERRY_HOST__NAME", "host-a")
        .set("VMFERRY_LIMITS__OUTGOING", "7")
        .set("VMFERRY_MIGRATION__DEFAULTS__MAX_BLACKOUT_MS", "12.5")
        .set("VMFERRY_API__LISTEN", "[::1]:7443")
        .set("VMFERRY_API__TLS__CA", "keys/ca.pem")
        .set("VMFERRY_API__TLS__CERT", "keys/host-a.pem")
        .set("VMFERRY_API__TLS__KEY", "keys/host-a.key")
        .set("VMFERRY_PEERS__HOST_B__URL", "https://host-b:7443")
        .set("VMFERRY_TELEMETRY__SERVICE_NAME", "5")
        // Neither of these says anything.
        .set("VMFERRY_LOG", "debug")
        .set("VMFERRY_LOG__FILTER", "")
        .set("HOME", "/root");
    let config = place
        .load("[host]\nname = 'host-z'\n[limits]\nvms = 3\n[log]\nfilter = 'warn'\n")
        .unwrap();
    assert_eq!(config.host.name, "host-a");
    assert_eq!((config.limits.outgoing, config.limits.vms), (7, 3));
    assert_eq!(config.migration.defaults.max_blackout_ms, Some(12.5));
    assert_eq!(config.migration_address().to_string(), "::1");
    assert_eq!(config.peers["host-b"].url, "https://host-b:7443");
    assert_eq!(config.telemetry.service_name, "5");
    assert_eq!(config.log.filter, "warn");
}

#[test]
fn a_wrong_variable_is_named() {
    let place = Place::new().set("VMFERRY_API__LISSEN", "x");
    let wrong = place.load(LEAST).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "VMFERRY_API__LISSEN: api.lissen: there is no such key; did you mean api.listen?"
    );
    let place = Place::new().set("VMFERRY_HOST__NAME", "No");
    let wrong = place.load(LEAST).unwrap_err();
    assert!(
        wrong
            .to_string()
            .starts_with("VMFERRY_HOST__NAME: host.name: "),
        "{wrong}"
    );
}

#[test]
fn the_network_is_not_opened_without_certificates() {
    let place = Place::with_keys();
    let (key, what) = place.only(&format!("{LEAST}[api]\nlisten = '127.0.0.1:7443'\n"));
    assert!(
        key == "api.listen" && what.contains("vmferry keys"),
        "{key}: {what}"
    );
    let (key, what) = place.only(&format!("{LEAST}[api]\n{TLS}listen = '0.0.0.0:7443'\n"));
    assert!(
        key == "migration.listen" && what.contains("reach"),
        "{key}: {what}"
    );
    let (key, _) = place.only(&format!("{LEAST}[api]\n{TLS}listen = '127.0.0.1:0'\n"));
    assert_eq!(key, "api.listen");
    let (key, _) = place.only(&format!("{LEAST}[peers.b]\nurl = 'https://b:1'\n"));
    assert_eq!(key, "peers");
    let all =
        format!("{LEAST}migration.listen = '10.0.0.1'\n[api]\n{TLS}listen = '0.0.0.0:7443'\n");
    assert_eq!(
        place.load(&all).unwrap().migration_address().to_string(),
        "10.0.0.1"
    );
}

#[test]
fn certificates_are_looked_at() {
    let place = Place::with_keys();
    let with = |tls: &str| format!("{LEAST}[api]\n{tls}");
    assert!(place.load(&with(TLS)).is_ok());
    let (key, what) = place.only(&with(&TLS.replace("host-a.key", "gone.key")));
    assert!(key == "api.tls" && what.contains("gone.key"), "{what}");
    let (_, what) = place.only(&with(&TLS.replace("host-a.key", "ca.pem")));
    assert!(what.contains("no private key"), "{what}");
    let other = Authority::new().unwrap().issue("host-a").unwrap();
    other.write_to(&place.path("other")).unwrap();
    let (_, what) = place.only(&with(&TLS.replace("keys/ca.pem", "other/ca.pem")));
    assert!(what.contains("does not vouch"), "{what}");
    let (_, what) = place.only(&with(TLS).replace("name = 'host-a'", "name = 'host-c'"));
    assert!(
        what.contains("is for host-a, not for this host, host-c"),
        "{what}"
    );
    let apart = format!("{LEAST}[migration]\n{}", TLS.replace("keys/", "keyz/"));
    assert_eq!(place.only(&apart).0, "migration.tls");
}

#[test]
fn sockets_have_to_fit() {
    let place = Place::new();
    let with = |n: usize| format!("{LEAST}host.state_dir = '/{}'\n", "x".repeat(n - 1));
    // Machines' names have 24 letters then.
    assert_eq!(
        place.load(&with(65)).unwrap().socket_path_without_name(),
        107 - 24
    );
    let (key, what) = place.only(&with(66));
    assert!(
        key == "host.state_dir" && what.contains("too long by 1 bytes"),
        "{what}"
    );
    // What is allowed can be bound.
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::of_host("a");
    config.host.state_dir = dir.path().to_owned();
    let name = "v".repeat(107 - config.socket_path_without_name());
    let of_vm = dir.path().join(VMS).join(&name);
    std::fs::create_dir_all(&of_vm).unwrap();
    std::os::unix::net::UnixListener::bind(of_vm.join(vmferry_vmm::SOCKET)).unwrap();
    let socket = format!("{LEAST}api.socket = '/{}'\n", "x".repeat(107));
    assert_eq!(place.only(&socket).0, "api.socket");
}

#[test]
fn urls_are_of_hosts_and_hold_no_secrets() {
    let place = Place::with_keys();
    let peer = |url: &str| format!("{LEAST}[peers.host-b]\nurl = '{url}'\n[api]\n{TLS}");
    assert!(place.load(&peer("https://host-b:7443/")).is_ok());
    assert!(place.load(&peer("https://[fd00::2]:7443")).is_ok());
    for bad in [
        "",
        "host-b",
        "http://host-b",
        "https://",
        "https://b/api",
        "https://b?x",
        "unix:/x",
    ] {
        assert_eq!(place.only(&peer(bad)).0, "peers.host-b.url", "{bad}");
    }
    let (_, what) = place.only(&peer("https://me:secret@host-b"));
    assert!(
        what.contains("password") && !what.contains("secret"),
        "{what}"
    );
    let otlp = |url: &str| format!("{LEAST}telemetry.otlp_endpoint = '{url}'\n");
    assert!(place.load(&otlp("http://collector:4318/v1/traces")).is_ok());
    assert_eq!(
        place.only(&otlp("collector:4318")).0,
        "telemetry.otlp_endpoint"
    );
    let own = peer("https://a").replace("host-b", "host-a");
    assert!(place.only(&own).1.contains("this host itself"));
    assert_eq!(
        place.only(&peer("https://b").replace("host-b", "B")).0,
        "peers.B"
    );
}

#[test]
fn hosts_are_called_like_hosts_and_not_like_users() {
    for bad in ["admin-a", "Host-A", "a.b", "a-", ""] {
        let text = format!("host.name = '{bad}'");
        assert_eq!(Place::new().only(&text).0, "host.name", "{bad}");
    }
}

/// The checked-in file.
const HOST_TOML: &str = include_str!("../../../../config/host.toml");

/// The keys that are shown, taken to be given.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    HOST_TOML.lines().map(|l| line(l) + "\n").collect()
}

#[test]
fn the_explained_file_is_what_the_types_say() {
    assert!(
        HOST_TOML == host_toml(),
        "config/host.toml is out of date: cargo run -p vmferry-service --bin host-toml"
    );
}

#[test]
fn the_explained_file_says_what_holds_anyway() {
    let config = Place::new().load(HOST_TOML).unwrap();
    assert_eq!(config, Place::new().load(LEAST).unwrap());
}

#[test]
fn the_explained_file_loads_with_all_its_keys() {
    let place = Place::with_keys();
    let config = place.load(&uncommented()).unwrap();
    assert!(config.api.tls.is_some() && config.api.listen.is_some());
    assert!(config.telemetry.otlp_endpoint.is_some() && config.peers.len() == 1);
    let least = place.load(LEAST).unwrap();
    assert_eq!(config.limits, least.limits);
    assert_eq!(config.migration.defaults, least.migration.defaults);
    assert_eq!(config.log, least.log);
}

#[test]
fn the_explained_file_has_every_key() {
    // Every key that is set somewhere in it is known; the other way round by the types: all fields
    // of all sections are there, as many as a full configuration has.
    let place = Place::with_keys();
    let full = serde_json::to_value(place.load(&uncommented()).unwrap()).unwrap();
    fn leaves(value: &serde_json::Value) -> usize {
        match value.as_object() {
            Some(inner) => inner.values().map(leaves).sum(),
            None => {
                assert!(!value.is_null(), "a key is missing in config/host.toml");
                1
            }
        }
    }
    let keys = uncommented()
        .lines()
        .filter(|line| line.split_once(" = ").is_some_and(|(key, _)| is_key(key)))
        .count();
    assert_eq!(keys, leaves(&full));
}

fn is_key(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[test]
fn the_examples_are_a_pair() {
    let text = |host: &str| match host {
        "host-a" => include_str!("../../../../config/examples/host-a.toml"),
        _ => include_str!("../../../../config/examples/host-b.toml"),
    };
    let place = Place::new();
    let authority = Authority::new().unwrap();
    let load = |host: &str| {
        let keys = authority.issue(host).unwrap();
        keys.write_to(&place.path("keys")).unwrap();
        place.load(text(host)).unwrap()
    };
    let (a, b) = (load("host-a"), load("host-b"));
    for (one, other) in [(&a, &b), (&b, &a)] {
        let listen = other.api.listen.unwrap();
        assert_eq!(one.peers[&other.host.name].url, format!("https://{listen}"));
        assert_ne!(one.host.state_dir, other.host.state_dir);
        assert_ne!(one.api.socket, other.api.socket);
    }
}

#[test]
fn what_holds_can_be_written_and_read_again() {
    let place = Place::with_keys();
    let config = place.load(&uncommented()).unwrap();
    assert_eq!(place.load(&effective(&config).unwrap()).unwrap(), config);
    let least = place.load(LEAST).unwrap();
    assert_eq!(place.load(&effective(&least).unwrap()).unwrap(), least);
}

#[test]
fn a_reload_takes_over_limits_peers_and_the_filter_and_names_the_rest() {
    let place = Place::with_keys();
    let before = format!("{LEAST}[api]\n{TLS}[peers.b]\nurl = 'https://b'\n");
    let after = format!(
        "{LEAST}host.state_dir = '/elsewhere'\n[api]\n{TLS}[peers.c]\nurl = 'https://c'\n\
         [limits]\noutgoing = 9\n[log]\nfilter = 'debug'\nformat = 'json'\n"
    );
    let (old, new) = (place.load(&before).unwrap(), place.load(&after).unwrap());
    let (next, difference) = take_over(&old, &new);
    let taken: Vec<_> = difference
        .taken_over
        .iter()
        .map(Change::to_string)
        .collect();
    assert_eq!(
        taken,
        [
            "limits.outgoing: 4 -> 9",
            "log.filter: \"info,actix_server=warn\" -> \"debug\"",
            "peers.b.url: \"https://b\" -> nothing",
            "peers.c.url: nothing -> \"https://c\"",
        ]
    );
    let later: Vec<_> = difference
        .needs_restart
        .iter()
        .map(|c| c.key.as_str())
        .collect();
    assert_eq!(later, ["host.state_dir", "log.format"]);
    let mut expected = old.clone();
    expected.limits.outgoing = 9;
    expected.peers = new.peers.clone();
    "debug".clone_into(&mut expected.log.filter);
    assert_eq!(next, expected);
    // What needs a restart is said again the next time; what was taken over is not.
    let (_, again) = take_over(&next, &new);
    assert_eq!((again.taken_over.len(), again.needs_restart.len()), (0, 2));
}

#[test]
fn a_bad_file_changes_nothing_when_it_is_reloaded() {
    let place = Place::new();
    let source = place.source(LEAST);
    let holds = watch::Sender::new(Arc::new(source.load().unwrap()));
    let mut seen = holds.subscribe();
    let wrong = reload(
        &place.source("host.name = 'host-a'\nlimits.vms = 0\n"),
        &holds,
    )
    .unwrap_err();
    assert_eq!(wrong.problems.len(), 1);
    assert!(!seen.has_changed().unwrap());
    let sound = place.source(&format!("{LEAST}limits.vms = 5\n"));
    assert_eq!(reload(&sound, &holds).unwrap().taken_over.len(), 1);
    assert_eq!(seen.borrow_and_update().limits.vms, 5);
    assert_eq!(reload(&sound, &holds).unwrap(), Difference::default());
    assert!(!seen.has_changed().unwrap());
}
