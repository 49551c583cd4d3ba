//! Why a request to an API has failed.

use thiserror::Error;

use crate::api::types::ProblemDetails;

/// Why a request has failed; in words, with what to do where that is known.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Not an address of an API.
    #[error("{0:?} is no address of an API: give unix:PATH, or https://HOST:PORT")]
    Address(String),
    /// TLS without a certificate of one's own.
    #[error(
        "{0}: a client certificate is needed: give the authority's certificate, one's own, and its key"
    )]
    NoCertificate(String),
    /// No connection.
    #[error("{to}: {why}")]
    Connect {
        /// The address.
        to: String,
        /// What happened.
        why: String,
    },
    /// No answer in time.
    #[error("{to}: nothing was heard for {seconds} s")]
    Timeout {
        /// The address.
        to: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The API has answered with a problem.
    #[error("{}", .0.detail)]
    Problem(Box<ProblemDetails>),
    /// What came is no answer of this API.
    #[error("{to}: not an answer of this API: {why}")]
    Strange {
        /// The address.
        to: String,
        /// What is strange about it.
        why: String,
    },
}

impl ClientError {
    /// The HTTP status of a problem.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.problem().map(|p| p.status)
    }

    /// The problem, if the API has answered with one.
    #[must_use]
    pub fn problem(&self) -> Option<&ProblemDetails> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// A title, for people.
    #[must_use]
    pub fn title(&self) -> &str {
        match self {
            Self::Problem(problem) => &problem.title,
            Self::Address(_) | Self::NoCertificate(_) => "The address cannot be used",
            Self::Connect { .. } => "The host cannot be reached",
            Self::Timeout { .. } => "The host does not answer",
            Self::Strange { .. } => "The answer is strange",
        }
    }

    /// What is wrong in this case.
    #[must_use]
    pub fn detail(&self) -> String {
        self.to_string()
    }
}

/// An error with all its causes, each of which is said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
