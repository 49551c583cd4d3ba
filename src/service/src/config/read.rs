//! The file and the environment, as values with places. Nothing is known here of what they mean.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Kind, Section};
use super::problem::{ConfigProblem, Position};

/// Where the keys of a file are: of the key itself, and of its value.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<Vec<String>, (Position, Position)>);

impl Places {
    pub(crate) fn key(&self, path: &[&str]) -> Option<Position> {
        self.find(path).map(|(key, _)| key)
    }

    pub(crate) fn value(&self, path: &[&str]) -> Option<Position> {
        self.find(path).map(|(_, value)| value)
    }

    fn find(&self, path: &[&str]) -> Option<(Position, Position)> {
        let path: Vec<_> = path.iter().map(|&part| part.to_owned()).collect();
        self.0.get(&path).copied()
    }
}

/// A file's text.
///
/// # Errors
/// Everywhere that it is not TOML.
pub(crate) fn file(text: &str) -> Result<(Dict, Places), Vec<ConfigProblem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let problem = |error: &toml::de::Error| ConfigProblem {
        at: error.span().map(|span| Position::of(text, span.start)),
        variable: None,
        key: String::new(),
        what: error.message().to_owned(),
        expected: None,
    };
    if !errors.is_empty() {
        return Err(errors.iter().map(problem).collect());
    }
    let mut places = Places::default();
    note(text, table.get_ref(), &mut Vec::new(), &mut places);
    let values = toml::from_str(text).map_err(|error| vec![problem(&error)])?;
    Ok((values, places))
}

fn note(text: &str, table: &DeTable<'_>, path: &mut Vec<String>, places: &mut Places) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        let at = |span: std::ops::Range<usize>| Position::of(text, span.start);
        places
            .0
            .insert(path.clone(), (at(key.span()), at(Spanned::span(value))));
        if let DeValue::Table(inner) = value.get_ref() {
            note(text, inner, path, places);
        }
        path.pop();
    }
}

/// What all variables begin with.
const PREFIX: &str = "VMFERRY_";
/// What stands between the parts of a key's path.
const BETWEEN: &str = "__";

/// Values out of the environment, and the variables by the paths of their keys.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) values: Dict,
    pub(crate) variables: BTreeMap<Vec<String>, String>,
    pub(crate) problems: Vec<ConfigProblem>,
}

impl Environment {
    /// The variable that has set a key.
    pub(crate) fn variable(&self, path: &[&str]) -> Option<String> {
        let path: Vec<_> = path.iter().map(|&part| part.to_owned()).collect();
        self.variables.get(&path).cloned()
    }
}

/// `VMFERRY_API__LISTEN` is `api.listen`. Empty variables say nothing; those without `__` are not
/// of the configuration.
pub(crate) fn environment(variables: &[(String, String)], sections: &[Section]) -> Environment {
    let mut read = Environment::default();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX).filter(|r| r.contains(BETWEEN)) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        let path = path(rest);
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        match typed(sections, &parts, value) {
            Ok(value) => {
                put(&mut read.values, &parts, value);
                read.variables.insert(path, name.clone());
            }
            Err((what, expected)) => read.problems.push(ConfigProblem {
                at: None,
                variable: Some(name.clone()),
                key: parts.join("."),
                what,
                expected,
            }),
        }
    }
    read
}

/// Names of peers have hyphens where variables cannot.
fn path(rest: &str) -> Vec<String> {
    let mut path: Vec<_> = rest.split(BETWEEN).map(str::to_ascii_lowercase).collect();
    if let [first, name, ..] = path.as_mut_slice()
        && first == "peers"
    {
        *name = name.replace('_', "-");
    }
    path
}

/// What is wrong, and what the key stands for.
type Wrong = (String, Option<String>);

fn typed(sections: &[Section], path: &[&str], value: &str) -> Result<Value, Wrong> {
    let Some(key) = keys::find(sections, path) else {
        let (name, section) = path.split_last().unwrap_or((&"", &[]));
        return Err((unknown(sections, section, name), None));
    };
    let no_number = || (format!("{value:?} is no number"), Some(key.doc.clone()));
    match key.kind {
        Kind::Text => Ok(Value::from(value)),
        Kind::Integer => value
            .parse::<i64>()
            .map(Value::from)
            .map_err(|_| no_number()),
        Kind::Number => value
            .parse::<f64>()
            .map(Value::from)
            .map_err(|_| no_number()),
    }
}

/// There is no such key.
pub(crate) fn unknown(sections: &[Section], section: &[&str], name: &str) -> String {
    let hint = match keys::nearest(sections, section, name) {
        Some(near) => format!("; did you mean {near}?"),
        None => "; config/host.toml has all keys".to_owned(),
    };
    format!("there is no such key{hint}")
}

fn put(values: &mut Dict, path: &[&str], value: Value) {
    match path {
        [] => {}
        [name] => {
            values.insert((*name).to_owned(), value);
        }
        [section, rest @ ..] => {
            let inner = values
                .entry((*section).to_owned())
                .or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}
