//! All keys that there are, out of the types: names, documentation, kinds, defaults.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::PartialSchema;

use super::fields;
use super::types::{Config, Host, Log, Migration, Peer, Telemetry, Tls};
use crate::model::{Limits, MigrationOptions};

/// A section of the file.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// As in `[api.tls]`; `peers.*` for those of peers.
    pub(crate) path: &'static str,
    /// What it is about.
    pub(crate) doc: String,
    /// Whether it can be left out as a whole, and has no defaults.
    pub(crate) optional: bool,
    /// Its keys, without the sections in it.
    pub(crate) keys: Vec<Key>,
}

/// A key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) doc: String,
    pub(crate) kind: Kind,
    /// What holds where it is not given.
    pub(crate) default: Option<Value>,
    /// What it may be like.
    pub(crate) example: Option<Value>,
}

/// What is written for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Number,
}

/// In the place of a peer's name.
pub(crate) const ANY: &str = "*";

/// All sections, in the order of the file.
pub(crate) fn sections() -> Vec<Section> {
    let of_host = Config::of_host("");
    let required = |section| Section {
        optional: false,
        ..section
    };
    vec![
        required(section::<Host>("host", None)).with_default("state_dir", &of_host.host.state_dir),
        required(section("api", Some(&of_host.api))),
        section::<Tls>("api.tls", None),
        required(section::<Migration>("migration", Some(&of_host.migration))),
        section::<Tls>("migration.tls", None)
            .about("Certificates of VM processes, where they differ from those of the API."),
        required(section::<MigrationOptions>(
            "migration.defaults",
            Some(&of_host.migration.defaults),
        ))
        .about("What holds where a migration is asked for and nothing else is said."),
        required(section::<Limits>("limits", Some(&of_host.limits)))
            .about("What this host allows."),
        section::<Peer>("peers.*", None),
        required(section::<Telemetry>("telemetry", Some(&of_host.telemetry))),
        required(section::<Log>("log", Some(&of_host.log))),
    ]
}

impl Section {
    fn about(mut self, doc: &str) -> Self {
        doc.clone_into(&mut self.doc);
        self
    }

    fn with_default(mut self, name: &str, default: &impl Serialize) -> Self {
        for key in self.keys.iter_mut().filter(|key| key.name == name) {
            key.default = serde_json::to_value(default).ok();
        }
        self
    }
}

fn section<T>(path: &'static str, defaults: Option<&T>) -> Section
where
    T: PartialSchema + Serialize + DeserializeOwned,
{
    let schema = serde_json::to_value(T::schema()).unwrap_or_default();
    let defaults = serde_json::to_value(defaults).unwrap_or_default();
    let keys = fields::of::<T>().iter().filter_map(|&name| {
        let about = &schema["properties"][name];
        Some(Key {
            name,
            doc: text(&about["description"]),
            kind: kind(about)?,
            default: defaults.get(name).filter(|v| !v.is_null()).cloned(),
            example: about.get("example").cloned(),
        })
    });
    Section {
        path,
        doc: text(&schema["description"]),
        optional: true,
        keys: keys.collect(),
    }
}

/// None for a section in a section.
fn kind(schema: &Value) -> Option<Kind> {
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    types.iter().find_map(|kind| match kind.as_str()? {
        "string" => Some(Kind::Text),
        "integer" => Some(Kind::Integer),
        "number" => Some(Kind::Number),
        _ => None,
    })
}

/// Lines become one.
fn text(doc: &Value) -> String {
    let words = doc.as_str().unwrap_or_default().split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// A key by its path.
pub(crate) fn find<'a>(sections: &'a [Section], path: &[&str]) -> Option<&'a Key> {
    let (name, section) = path.split_last()?;
    let section = general(section);
    let section = sections.iter().find(|s| s.path == section)?;
    section.keys.iter().find(|key| key.name == *name)
}

/// Where a section stands in the table: the same for all peers.
fn general(section: &[&str]) -> String {
    match section {
        ["peers", _] => format!("peers.{ANY}"),
        path => path.join("."),
    }
}

/// The key or section that was probably meant by an unknown one: the most alike in the same
/// section, else the one of that name in another.
pub(crate) fn nearest(sections: &[Section], section: &[&str], name: &str) -> Option<String> {
    let here = general(section);
    let prefix = if here.is_empty() {
        String::new()
    } else {
        format!("{here}.")
    };
    let inner = sections
        .iter()
        .filter_map(|s| s.path.strip_prefix(&prefix))
        .map(|rest| rest.split('.').next().unwrap_or(rest));
    let keys = sections
        .iter()
        .filter(|s| s.path == here)
        .flat_map(|s| s.keys.iter().map(|key| key.name));
    let likeness = |candidate: &str| strsim::jaro_winkler(&name.to_lowercase(), candidate);
    let alike = inner
        .chain(keys)
        .filter(|candidate| *candidate != ANY && likeness(candidate) > ALIKE)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let full = |section: &str, key: &str| format!("{section}.{key}");
    let elsewhere = || {
        sections
            .iter()
            .flat_map(|s| s.keys.iter().map(move |key| (s.path, key.name)))
            .filter(|(_, key)| *key == name)
            .map(|(section, key)| full(section, key))
            .next()
    };
    match alike {
        Some(alike) if section.is_empty() => Some(alike.to_owned()),
        Some(alike) => Some(full(&section.join("."), alike)),
        None => elsewhere(),
    }
}

/// Less alike than this, a key is not what was meant.
const ALIKE: f64 = 0.75;
