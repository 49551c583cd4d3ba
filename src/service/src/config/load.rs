//! From file and environment to a configuration, or to everything that is wrong with it.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::Serialized;
use figment::value::{Dict, Value};

use super::check;
use super::keys::{self, Section};
use super::problem::{ConfigProblem, ConfigProblems};
use super::read::{self, Environment, Places};
use super::types::{Config, Tls, built_in};

/// Where a configuration comes from. It can be read again.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// Environment variables, which go before it.
    pub variables: Vec<(String, String)>,
}

impl Source {
    /// A file, and the environment of this process.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            file: file.to_owned(),
            variables: std::env::vars_os().filter_map(text).collect(),
        }
    }

    /// The configuration, with what it leaves open filled in; all paths are absolute.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Config, ConfigProblems> {
        let failed = |problems| ConfigProblems {
            file: self.file.clone(),
            problems,
        };
        let unread = |error: std::io::Error| {
            failed(vec![ConfigProblem {
                at: None,
                variable: None,
                key: String::new(),
                what: format!("cannot be read: {error}"),
                expected: None,
            }])
        };
        let text = std::fs::read_to_string(&self.file).map_err(unread)?;
        let file = std::path::absolute(&self.file).map_err(unread)?;
        let (values, places) = read::file(&text).map_err(failed)?;
        let sections = keys::sections();
        let environment = read::environment(&self.variables, &sections);
        let mut findings = Findings {
            places,
            problems: environment.problems.clone(),
            environment,
            sections,
        };
        let config = findings.typed(values).map(|mut config| {
            fill(&mut config, file.parent().unwrap_or(Path::new("/")));
            check::all(&config, &mut findings);
            config
        });
        match config {
            Some(config) if findings.problems.is_empty() => Ok(config),
            _ => {
                let mut problems = findings.problems;
                problems.sort_by_key(|p| (p.variable.is_some(), p.at));
                Err(failed(problems))
            }
        }
    }
}

/// What has been found so far, and where things are.
pub(crate) struct Findings {
    places: Places,
    environment: Environment,
    sections: Vec<Section>,
    problems: Vec<ConfigProblem>,
}

impl Findings {
    /// Notes a problem of a key, unless there is one already with it or with those in `needs`.
    pub(crate) fn note(&mut self, key: &str, needs: &[&str], what: impl Into<String>) {
        if self.broken(key) || needs.iter().any(|key| self.broken(key)) {
            return;
        }
        let path: Vec<&str> = key.split('.').collect();
        self.push(&path, what.into());
    }

    /// Whether there is a problem with a key, or with one above or below.
    fn broken(&self, key: &str) -> bool {
        let within = |a: &str, b: &str| {
            a.strip_prefix(b)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.problems
            .iter()
            .any(|p| !p.key.is_empty() && (within(&p.key, key) || within(key, &p.key)))
    }

    fn push(&mut self, path: &[&str], what: String) {
        let above = || {
            (0..path.len())
                .rev()
                .find_map(|n| self.places.key(&path[..n]))
        };
        self.problems.push(ConfigProblem {
            at: self.places.value(path).or_else(above),
            variable: self.environment.variable(path),
            key: path.join("."),
            what,
            expected: keys::find(&self.sections, path).map(|key| key.doc.clone()),
        });
    }

    /// The configuration without what is wrong in it: what cannot be is noted, left out, and the
    /// rest looked at again.
    fn typed(&mut self, file: Dict) -> Option<Config> {
        let environment = Serialized::globals(self.environment.values.clone());
        let merged = Figment::from(Serialized::globals(file)).merge(environment);
        let mut values: Dict = merged.extract().ok()?;
        values
            .entry("host".to_owned())
            .or_insert_with(|| Value::from(Dict::new()));
        // Each round takes something away, or adds one of the few keys that have to be there.
        for _ in 0..MOST_ROUNDS {
            let error = match Value::from(values.clone()).deserialize::<Config>() {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
            let repaired = match &error.kind {
                // Its path ends in the key itself.
                Kind::UnknownField(name, _) => {
                    let section = path.split_last().map_or(&[][..], |(_, section)| section);
                    self.problems.push(ConfigProblem {
                        at: self.places.key(&path),
                        variable: None,
                        key: path.join("."),
                        what: read::unknown(&self.sections, section, name),
                        expected: None,
                    });
                    remove(&mut values, &path)
                }
                Kind::MissingField(name) => {
                    let full = [path.as_slice(), &[name.as_ref()]].concat();
                    if !self.broken(&full.join(".")) {
                        self.push(&full, "has to be given".to_owned());
                    }
                    insert(&mut values, &full)
                }
                kind => {
                    self.push(&path, words(kind));
                    remove(&mut values, &path)
                }
            };
            if !repaired {
                break;
            }
        }
        None
    }
}

/// Who has made more mistakes than that is told of so many first.
const MOST_ROUNDS: usize = 200;

/// What serde has against a value.
fn words(kind: &Kind) -> String {
    let number = |most: u64| format!("a whole number from 0 to {most}");
    let wanted = |expected: &str| match expected {
        "u8" => number(u8::MAX.into()),
        "u16" => number(u16::MAX.into()),
        "u32" => number(u32::MAX.into()),
        "u64" => "a whole number from 0".to_owned(),
        "f64" => "a number".to_owned(),
        "a string" | "path string" => "text in quotes".to_owned(),
        "a map" => "sections in it".to_owned(),
        other if other.starts_with("struct ") => "a section with keys".to_owned(),
        other => other.to_owned(),
    };
    match kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("takes {}, but this is {found}", wanted(expected))
        }
        Kind::UnknownVariant(found, known) => {
            format!("{found:?} is none of: {}", known.join(", "))
        }
        other => other.to_string(),
    }
}

fn section<'a>(values: &'a mut Dict, path: &[&str]) -> Option<&'a mut Dict> {
    path.iter()
        .try_fold(values, |at, part| match at.get_mut(*part) {
            Some(Value::Dict(_, inner)) => Some(inner),
            _ => None,
        })
}

fn remove(values: &mut Dict, path: &[&str]) -> bool {
    path.split_last()
        .and_then(|(name, above)| section(values, above)?.remove(*name))
        .is_some()
}

/// Something in the place of what is missing: text for a key; the one section is that of the host.
fn insert(values: &mut Dict, path: &[&str]) -> bool {
    let something = match path {
        ["host"] => Value::from(Dict::new()),
        _ => Value::from(""),
    };
    path.split_last()
        .and_then(|(name, above)| Some((name, section(values, above)?)))
        .is_some_and(|(name, at)| at.insert((*name).to_owned(), something).is_none())
}

/// Fills in what follows from other keys. Paths are relative to the file.
fn fill(config: &mut Config, base: &Path) {
    let resolve = |path: &mut PathBuf| *path = base.join(&*path);
    let of_tls = |tls: &mut Option<Tls>| {
        if let Some(tls) = tls {
            resolve(&mut tls.ca);
            resolve(&mut tls.cert);
            resolve(&mut tls.key);
        }
    };
    resolve(&mut config.host.state_dir);
    resolve(&mut config.api.socket);
    of_tls(&mut config.api.tls);
    of_tls(&mut config.migration.tls);
    config.migration.files_in.as_mut().map(resolve);
    let asked = std::mem::take(&mut config.migration.defaults);
    config.migration.defaults = asked.or(&built_in());
    config.migration.listen = Some(config.migration_address());
    config.migration.tls = config.migration_tls().cloned();
}
