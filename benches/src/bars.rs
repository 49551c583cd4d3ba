//! Promises, and what came of them.

use std::process::ExitCode;

use serde::Serialize;

/// A promise and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// What was promised, with its unit.
    pub what: String,
    /// What it is.
    pub value: f64,
    /// What it may be.
    pub at_most: f64,
    /// Whether it is.
    pub within: bool,
}

/// Judges a value; one that is not a number is not within anything.
#[must_use]
pub fn judged(what: &str, value: f64, at_most: f64) -> Judged {
    Judged {
        what: what.to_owned(),
        value,
        at_most,
        within: value <= at_most,
    }
}

/// Prints a line for each.
pub fn print(bars: &[Judged]) {
    for bar in bars {
        println!(
            "{:>9.3} (at most {:.3}) {}  {}",
            bar.value,
            bar.at_most,
            if bar.within { "ok  " } else { "MISS" },
            bar.what
        );
    }
}

/// Whether all promises are kept.
#[must_use]
pub fn all_within(bars: &[Judged]) -> bool {
    bars.iter().all(|bar| bar.within)
}

/// How a bench ends: with 1 where a promise is not kept, or nothing could be measured.
#[must_use]
pub fn exit(bench: &str, kept: Result<bool, String>) -> ExitCode {
    match kept {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{bench}: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_a_miss() {
        assert!(judged("a", 1.0, 1.0).within);
        assert!(!judged("a", 1.1, 1.0).within && !judged("a", f64::NAN, 1.0).within);
        assert!(all_within(&[]) && !all_within(&[judged("a", 2.0, 1.0)]));
    }
}
