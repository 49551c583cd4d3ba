//! Whether a configuration makes sense as a whole: what its types cannot say.

use http::Uri;
use tracing_subscriber::EnvFilter;
use vmferry_transports::TlsIdentity;
use vmferry_transports::keys::CertificateInfo;

use super::load::Findings;
use super::types::{Config, SOCKET_PATH, Tls, is_name};
use crate::model::MigrationOptions;

/// Machines can have names of so many letters everywhere.
const VM_NAME: usize = 24;

pub(crate) fn all(config: &Config, findings: &mut Findings) {
    host(config, findings);
    network(config, findings);
    certificates(config, findings);
    for (key, what) in options(&config.migration.defaults) {
        findings.note(&format!("migration.defaults.{key}"), &[], what);
    }
    limits(config, findings);
    peers(config, findings);
    let telemetry = &config.telemetry;
    if let Some(endpoint) = &telemetry.otlp_endpoint
        && let Err(what) = url(endpoint, &["http", "https"], true)
    {
        findings.note("telemetry.otlp_endpoint", &[], what);
    }
    if telemetry.service_name.is_empty() {
        findings.note("telemetry.service_name", &[], "is empty");
    }
    if let Err(error) = EnvFilter::builder().parse(&config.log.filter) {
        findings.note("log.filter", &[], error.to_string());
    }
}

fn host(config: &Config, findings: &mut Findings) {
    let name = &config.host.name;
    if !is_name(name) || name.starts_with(ADMIN) {
        findings.note(
            "host.name",
            &[],
            format!("{name:?} cannot be a host's name"),
        );
    }
    let needed = config.socket_path_without_name() + VM_NAME;
    if needed > SOCKET_PATH {
        findings.note(
            "host.state_dir",
            &[],
            format!(
                "is too long by {} bytes: the path of a socket in it has at most {SOCKET_PATH}",
                needed - SOCKET_PATH
            ),
        );
    }
    if config.api.socket.as_os_str().len() > SOCKET_PATH {
        let what = format!("is too long: a socket's path has at most {SOCKET_PATH} bytes");
        findings.note("api.socket", &[], what);
    }
}

/// What the common names of users' certificates begin with.
const ADMIN: &str = vmferry_transports::keys::ADMIN;

fn network(config: &Config, findings: &mut Findings) {
    if config.api.listen.is_some() && config.api.tls.is_none() {
        findings.note(
            "api.listen",
            &["api.tls"],
            "needs [api.tls]: without certificates everybody could do everything; \
             `vmferry keys` makes them",
        );
    }
    if config.api.listen.is_some_and(|listen| listen.port() == 0) {
        findings.note(
            "api.listen",
            &[],
            "needs a port that others can know, not 0",
        );
    }
    if config.migration_address().is_unspecified() {
        findings.note(
            "migration.listen",
            &["api.listen"],
            "other hosts are told this address: give the one that they reach, not all of them",
        );
    }
}

fn certificates(config: &Config, findings: &mut Findings) {
    let mut check = |tls: &Tls, key: &str| {
        if let Err(what) = identity(tls, &config.host.name) {
            findings.note(key, &["host.name"], what);
        }
    };
    if let Some(tls) = &config.api.tls {
        check(tls, "api.tls");
    }
    if let Some(tls) = &config.migration.tls
        && config.migration.tls != config.api.tls
    {
        check(tls, "migration.tls");
    }
}

fn identity(tls: &Tls, host: &str) -> Result<(), String> {
    TlsIdentity::from_files(&tls.ca, &tls.cert, &tls.key).map_err(|e| e.to_string())?;
    let own = CertificateInfo::from_file(&tls.cert).map_err(|e| e.to_string())?;
    if own.names.iter().any(|name| name == host) {
        return Ok(());
    }
    Err(format!(
        "{}: the certificate is for {}, not for this host, {host}",
        tls.cert.display(),
        own.names.join(", ")
    ))
}

/// What makes no sense in options of a migration: fields, and what is wrong with them.
#[must_use]
pub fn options(options: &MigrationOptions) -> Vec<(&'static str, String)> {
    fn parsed<T: std::str::FromStr<Err: ToString>>(text: Option<&String>) -> Option<String> {
        text?.parse::<T>().err().map(|e| e.to_string())
    }
    let tracker = options.tracker.as_ref().filter(|name| *name != "auto");
    let range = |given: Option<u64>, least: u64, most: u64| {
        given
            .filter(|n| !(least..=most).contains(n))
            .map(|n| format!("{n} is not from {least} to {most}"))
    };
    let blackout = options
        .max_blackout_ms
        .filter(|ms| !(ms.is_finite() && *ms > 0.0 && *ms <= LONGEST_BLACKOUT_MS))
        .map(|ms| format!("{ms} is not more than 0, and an hour at most"));
    let found = [
        (
            "transport",
            parsed::<vmferry_transports::TransportKind>(options.transport.as_ref()),
        ),
        ("streams", range(options.streams.map(u64::from), 1, 16)),
        (
            "codec",
            parsed::<vmferry_codecs::CodecChoice>(options.codec.as_ref()),
        ),
        ("tracker", parsed::<vmferry_tracker::TrackerKind>(tracker)),
        (
            "group",
            parsed::<vmferry_tracker::GroupSize>(options.group.as_ref()),
        ),
        (
            "throttle_pct",
            range(options.throttle_pct.map(u64::from), 0, 100),
        ),
        ("link_mbit", range(options.link_mbit, 0, MOST_MBIT)),
        ("max_blackout_ms", blackout),
        (
            "min_passes",
            range(options.min_passes.map(u64::from), 1, 40),
        ),
    ];
    found
        .into_iter()
        .filter_map(|(field, what)| Some((field, what?)))
        .collect()
}

/// An hour.
const LONGEST_BLACKOUT_MS: f64 = 3_600_000.0;
/// 10 Tbit/s: bytes per second still fit everywhere.
const MOST_MBIT: u64 = 10_000_000;

fn limits(config: &Config, findings: &mut Findings) {
    let limits = &config.limits;
    for (key, value) in [
        ("limits.outgoing", limits.outgoing),
        ("limits.incoming", limits.incoming),
        ("limits.vms", limits.vms),
    ] {
        if value == 0 {
            findings.note(key, &[], "has to be at least 1");
        }
    }
    if limits.link_mbit > MOST_MBIT {
        findings.note("limits.link_mbit", &[], format!("is more than {MOST_MBIT}"));
    }
}

fn peers(config: &Config, findings: &mut Findings) {
    for (name, peer) in &config.peers {
        let key = format!("peers.{name}");
        if !is_name(name) {
            let what = "cannot be a host's name: 1 to 63 lower-case letters, digits and hyphens";
            findings.note(&key, &[], what);
        } else if *name == config.host.name {
            findings.note(&key, &["host.name"], "is this host itself: take it out");
        }
        if let Err(what) = url(&peer.url, &["https"], false) {
            findings.note(&format!("{key}.url"), &[], what);
        }
    }
    if !config.peers.is_empty() && config.migration.tls.is_none() {
        let what = "to talk to peers takes certificates: give [api.tls]; `vmferry keys` makes them";
        findings.note("peers", &["api.tls", "migration.tls"], what);
    }
}

/// Just a scheme, a host and perhaps a port; a path only where it may have one.
fn url(text: &str, schemes: &[&str], path: bool) -> Result<(), String> {
    let like = || format!("as in {}://HOST:PORT", schemes[schemes.len() - 1]);
    let uri: Uri = text
        .parse()
        .map_err(|e| format!("{text:?} is no URL ({e}); write it {}", like()))?;
    let authority = uri.authority().map_or("", |a| a.as_str());
    if uri.scheme_str().is_none_or(|s| !schemes.contains(&s)) {
        let schemes = schemes.join(":// or ");
        return Err(format!("{text:?} does not begin with {schemes}://"));
    }
    if authority.contains('@') {
        // Not repeated: it may be a secret.
        return Err("has a user or a password in it: take them out".to_owned());
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("{text:?} names no host; write it {}", like()));
    }
    if !path && (uri.query().is_some() || !matches!(uri.path(), "" | "/")) {
        return Err(format!("{text:?} has a path; write it {}", like()));
    }
    Ok(())
}
