//! The configuration as a file: `config/host.toml`, which explains all keys, and what holds.

use std::fmt::Write;

use serde_json::Value;

use super::keys::{ANY, Key, Section, sections};
use super::types::Config;

const WIDTH: usize = 98;
/// A peer's name in the example.
const PEER: &str = "host-b";

const HEAD: &str = "\
# A host's configuration: all keys, with what holds where they are not given.
# Written by `cargo run -p vmferry-service --bin host-toml` from the types; changes to it are lost.
#
# A line that begins with # and a key shows the default, or says \"for example\"; take the # away to
# change it. Paths are relative to this file. Each key can be set in the environment instead:
# VMFERRY_API__LISTEN goes before listen in [api].
#
# `vmferry config check --config FILE` says all that is wrong with a file, `vmferry config show` what
# holds. On SIGHUP a running host takes over [limits], [peers] and the filter of [log].
";

/// What `config/host.toml` holds.
#[must_use]
pub fn host_toml() -> String {
    let mut out = HEAD.to_owned();
    for section in sections() {
        // Writing to a string does not fail.
        let _ = render(&section, &mut out);
    }
    out
}

fn render(section: &Section, out: &mut String) -> std::fmt::Result {
    writeln!(out)?;
    comment(&section.doc, out)?;
    let mark = if section.optional { "#" } else { "" };
    writeln!(out, "{mark}[{}]", section.path.replace(ANY, PEER))?;
    for key in &section.keys {
        writeln!(out)?;
        render_key(section, key, out)?;
    }
    Ok(())
}

fn render_key(section: &Section, key: &Key, out: &mut String) -> std::fmt::Result {
    let value = match (&key.default, &key.example) {
        (Some(default), _) => {
            comment(&key.doc, out)?;
            literal(default)
        }
        (None, example) => {
            // In an optional section, all is an example.
            let hint = if section.optional || section.path == "host" {
                ""
            } else {
                " For example:"
            };
            comment(&format!("{}{hint}", key.doc), out)?;
            literal(example.as_ref().unwrap_or(&Value::Null))
        }
    };
    let required = section.path == "host" && key.default.is_none();
    let mark = if required { "" } else { "#" };
    writeln!(out, "{mark}{} = {value}", key.name)
}

/// As TOML has it. Numbers without a fraction are written without it.
fn literal(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(n) if n.fract() == 0.0 && number.is_f64() => format!("{n:.0}"),
            _ => number.to_string(),
        },
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        other => other.to_string(),
    }
}

fn comment(text: &str, out: &mut String) -> std::fmt::Result {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            writeln!(out, "{line}")?;
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

/// A configuration as a file that says everything. There are no secrets in it: keys are in files
/// of their own, and URLs with a password are refused.
///
/// # Errors
/// Not to be expected.
pub fn effective(config: &Config) -> Result<String, toml::ser::Error> {
    toml::to_string(config)
}
