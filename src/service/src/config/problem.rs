//! What is wrong with a configuration, where, and what is expected there.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// A line and a column of a file, from 1. Columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Position {
    /// Of a byte of `text`.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    /// Where in the file, if it is of the file.
    pub at: Option<Position>,
    /// The environment variable that it is of.
    pub variable: Option<String>,
    /// The key's path, as in `api.listen`; empty where it is of none.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
    /// What the key stands for.
    pub expected: Option<String>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigProblems {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub problems: Vec<ConfigProblem>,
}

impl ConfigProblems {
    /// `FILE:LINE:COLUMN: KEY: …`, or the variable in place of the file.
    fn line(&self, problem: &ConfigProblem) -> String {
        let place = match (&problem.variable, problem.at) {
            (Some(variable), _) => variable.clone(),
            (None, Some(at)) => format!("{}:{}:{}", self.file.display(), at.line, at.column),
            (None, None) => self.file.display().to_string(),
        };
        let key = match problem.key.as_str() {
            "" => String::new(),
            key => format!("{key}: "),
        };
        let expected = match &problem.expected {
            Some(expected) => format!("\n    {expected}"),
            None => String::new(),
        };
        format!("{place}: {key}{}{expected}", problem.what)
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(|p| self.line(p)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigProblems {}
