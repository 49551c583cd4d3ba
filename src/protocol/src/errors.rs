//! Errors for people: one line that ends with the first cause.

use std::error::Error;

/// An error and what caused it, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("the disk is full")]
    struct Cause;

    #[derive(Debug, Error)]
    #[error("the journal could not be written")]
    struct Failure(#[source] Cause);

    #[test]
    fn the_first_cause_comes_last() {
        let text = chain(&Failure(Cause));
        assert_eq!(text, "the journal could not be written: the disk is full");
    }
}
