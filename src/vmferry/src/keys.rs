//! `vmferry keys`: an authority, and certificates for hosts and for users.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use vmferry_service::rules::{HOST_NAME_RULE, is_host_name};
use vmferry_transports::TransportError;
use vmferry_transports::keys::{
    AUTHORITY_DAYS, Authority, CertificateInfo, DAYS, Existing, HostKeys,
};

use crate::{Exit, fail};

/// What is to be made, or shown.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make an authority: ca.pem for every host and user, and ca.key, to be kept safe
    Authority(AuthorityArgs),
    /// Make a host's certificate and key
    Host(HostArgs),
    /// Make a certificate and key for a user of the command line
    Admin(AdminArgs),
    /// Say what the certificates in a file are for, and for how long
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AuthorityArgs {
    /// Directory to write ca.pem and ca.key to; what is there already stays
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Its name
    #[arg(long, default_value = "vmferry authority", value_parser = common_name)]
    name: String,
    /// How long it is valid
    #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = days())]
    days: u32,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Making {
    /// The authority's directory
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// Directory to write to: ca.pem, and the certificate and key by name
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate is valid; not longer than the authority
    #[arg(long, default_value_t = DAYS, value_parser = days())]
    days: u32,
    /// Take the place of a certificate and key that are there already
    #[arg(long)]
    replace: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The host's name, as host.name in its configuration
    #[arg(value_parser = name)]
    name: String,
    /// Where else it is reached: an address or a DNS name, as in the URLs that others have of it;
    /// can be given several times
    #[arg(long, value_name = "IP-OR-DNS")]
    address: Vec<String>,
    #[command(flatten)]
    making: Making,
}

#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// The user's name; the certificate is for admin-NAME
    #[arg(value_parser = name)]
    name: String,
    #[command(flatten)]
    making: Making,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A PEM file with certificates
    file: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// A hundred years at most: the dates of certificates end some time.
fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

fn name(text: &str) -> Result<String, String> {
    if is_host_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("a name is {HOST_NAME_RULE}"))
    }
}

/// As long as X.509 has them.
fn common_name(text: &str) -> Result<String, String> {
    if (1..=64).contains(&text.chars().count()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 64 characters".to_owned())
    }
}

pub(crate) fn run(command: &KeysCommand) -> Exit {
    let done = match command {
        KeysCommand::Authority(args) => authority(args),
        KeysCommand::Host(args) => Authority::load_from(&args.making.authority)
            .and_then(|authority| {
                let others: Vec<_> = args.address.iter().map(String::as_str).collect();
                authority.host(&args.name, &others, args.making.days)
            })
            .and_then(|keys| put(&keys, &args.making)),
        KeysCommand::Admin(args) => Authority::load_from(&args.making.authority)
            .and_then(|authority| authority.user(&args.name, args.making.days))
            .and_then(|keys| put(&keys, &args.making)),
        KeysCommand::Show(args) => show(args),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(error) => fail(&error),
    }
}

fn authority(args: &AuthorityArgs) -> Result<(), TransportError> {
    Authority::named(&args.name, args.days)?.write_new_to(&args.dir)?;
    let (ca, key) = (args.dir.join("ca.pem"), args.dir.join("ca.key"));
    let info = CertificateInfo::from_file(&ca)?;
    let written = json!({ "ca": ca, "key": key, "certificate": as_json(&info) });
    print(args.json, &written, &[&ca, &key], &info);
    Ok(())
}

fn put(keys: &HostKeys, making: &Making) -> Result<(), TransportError> {
    let existing = if making.replace {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let files = keys.write_beside(&making.out, existing)?;
    let info = CertificateInfo::from_file(&files.certificate)?;
    let written = json!({
        "ca": files.ca,
        "cert": files.certificate,
        "key": files.key,
        "certificate": as_json(&info),
    });
    let paths = [
        files.ca.as_path(),
        files.certificate.as_path(),
        files.key.as_path(),
    ];
    print(making.json, &written, &paths, &info);
    Ok(())
}

fn print(json: bool, written: &Value, files: &[&Path], info: &CertificateInfo) {
    if json {
        println!("{written:#}");
        return;
    }
    for file in files {
        println!("{}", file.display());
    }
    println!("{}", as_text(info));
}

fn show(args: &ShowArgs) -> Result<(), TransportError> {
    let all = CertificateInfo::all_from_file(&args.file)?;
    if args.json {
        let all: Vec<_> = all.iter().map(as_json).collect();
        println!("{:#}", Value::Array(all));
    } else {
        let all: Vec<_> = all.iter().map(as_text).collect();
        println!("{}", all.join("\n\n"));
    }
    Ok(())
}

/// What a certificate is for.
fn role(info: &CertificateInfo) -> &'static str {
    match (info.authority, info.server, info.client) {
        (true, ..) => "authority",
        (false, true, _) => "host",
        (false, false, true) => "user",
        (false, false, false) => "none",
    }
}

fn as_json(info: &CertificateInfo) -> Value {
    json!({
        "name": info.common_name,
        "role": role(info),
        "names": info.names,
        "issuer": info.issuer,
        "serial": info.serial,
        "not_before": CertificateInfo::text(info.not_before),
        "not_after": CertificateInfo::text(info.not_after),
        "current": info.is_current(),
    })
}

fn as_text(info: &CertificateInfo) -> String {
    let names = match info.names.as_slice() {
        [] => String::new(),
        names => format!("\n  for     {}", names.join(", ")),
    };
    let current = if info.is_current() {
        ""
    } else {
        " (NOT VALID NOW)"
    };
    format!(
        "{} ({}){names}\n  by      {}\n  serial  {}\n  valid   {} to {}{current}",
        info.common_name,
        role(info),
        info.issuer,
        info.serial,
        CertificateInfo::text(info.not_before),
        CertificateInfo::text(info.not_after),
    )
}
