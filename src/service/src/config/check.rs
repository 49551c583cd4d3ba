//! Whether a configuration makes sense as a whole: what its types cannot say.

use http::Uri;
use tracing_subscriber::EnvFilter;
use vmferry_transports::TlsIdentity;
use vmferry_transports::keys::CertificateInfo;

use super::load::Findings;
use super::types::{Config, Tls};
use crate::client::{ApiClient, ClientError};
use crate::rules::{HOST_NAME_RULE, MOST_MBIT, SOCKET_PATH, is_host_name, option_problems};

/// Machines can have names of so many letters everywhere.
const VM_NAME: usize = 24;

pub(crate) fn all(config: &Config, findings: &mut Findings) {
    host(config, findings);
    network(config, findings);
    certificates(config, findings);
    for (key, what) in option_problems(&config.migration.defaults) {
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
    if !is_host_name(name) || name.starts_with(ADMIN) {
        findings.note(
            "host.name",
            &[],
            format!("{name:?} cannot be a host's name: {HOST_NAME_RULE}"),
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
    if config.migration_address().is_unspecified() && config.migration.advertise.is_none() {
        findings.note(
            "migration.listen",
            &["api.listen"],
            "other hosts are told this address: give the one that they reach, or migration.advertise",
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

/// What a list of them may hold, of which an event stream is told.
const MOST_REMEMBERED: u32 = 20_000;

fn limits(config: &Config, findings: &mut Findings) {
    let limits = &config.limits;
    for (key, value) in [
        ("limits.outgoing", limits.outgoing),
        ("limits.incoming", limits.incoming),
        ("limits.vms", limits.vms),
        ("migration.remembered", config.migration.remembered),
        ("migration.come_within_s", config.migration.come_within_s),
    ] {
        if value == 0 {
            findings.note(key, &[], "has to be at least 1");
        }
    }
    let (first, last) = (config.migration.first_port, config.migration.last_port);
    if first > last || (first == 0) != (last == 0) {
        let what = "give both ports, the first not above the last; or none";
        findings.note("migration.last_port", &["migration.first_port"], what);
    }
    if config.migration.remembered > MOST_REMEMBERED {
        let what = format!("is more than {MOST_REMEMBERED}: all of them are told at once");
        findings.note("migration.remembered", &[], what);
    }
    if limits.link_mbit > MOST_MBIT {
        findings.note("limits.link_mbit", &[], format!("is more than {MOST_MBIT}"));
    }
}

fn peers(config: &Config, findings: &mut Findings) {
    for (name, peer) in &config.peers {
        let key = format!("peers.{name}");
        if !is_host_name(name) {
            let what = format!("cannot be a host's name: {HOST_NAME_RULE}");
            findings.note(&key, &[], what);
        } else if *name == config.host.name {
            findings.note(&key, &["host.name"], "is this host itself: take it out");
        }
        if let Err(what) = url(&peer.url, &["https"], false) {
            findings.note(&format!("{key}.url"), &[], what);
        } else if let Err(wrong @ ClientError::Address(_)) = ApiClient::new(&peer.url, None) {
            findings.note(&format!("{key}.url"), &[], wrong.to_string());
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
