//! Errors as they are answered: problem documents (RFC 9457).

use std::fmt;

use actix_web::HttpResponse;
use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONNECTION, CONTENT_TYPE};

use super::types::ProblemDetails;
use crate::control::ControlError;

/// The content type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// A request that is not carried out.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: String,
    /// Methods that would do.
    allow: Option<String>,
    /// The rest of the request was not read: the connection cannot go on.
    close: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            allow: None,
            close: false,
        }
    }

    /// 400: what came is not what it should be.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 404.
    pub(super) fn missing(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 405, with the methods that there are.
    pub(super) fn method(method: &str, allow: &str) -> Self {
        Self {
            allow: Some(allow.to_owned()),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} is not for this resource: it answers to {allow}"),
            )
        }
    }

    /// The connection ends with this answer.
    pub(super) fn closing(self) -> Self {
        Self {
            close: true,
            ..self
        }
    }

    /// What something else than a handler has answered, in the form of all others.
    pub(super) fn plain(status: StatusCode) -> Self {
        Self::new(
            status,
            format!("the request was not understood ({})", status.as_u16()),
        )
    }

    /// The document, for a request of `instance`.
    pub(super) fn response(&self, instance: &str) -> HttpResponse<BoxBody> {
        let (kind, title) = kind(self.status);
        let document = ProblemDetails {
            kind: format!("urn:vmferry:problem:{kind}"),
            title: title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            instance: instance.to_owned(),
        };
        let mut response = HttpResponse::build(self.status);
        if let Some(allow) = &self.allow {
            response.insert_header((ALLOW, allow.as_str()));
        }
        if self.close {
            response.force_close().insert_header((CONNECTION, "close"));
        }
        response
            .insert_header((CONTENT_TYPE, PROBLEM_JSON))
            .body(serde_json::to_vec(&document).unwrap_or_default())
    }
}

/// A word for programs and a title for people.
fn kind(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("malformed", "The request is malformed"),
        403 => ("forbidden", "The caller may not do this"),
        404 => ("not-found", "There is no such thing"),
        405 => ("method", "The resource has no such method"),
        408 => ("too-slow", "The request came too slowly"),
        409 => ("conflict", "It does not fit the state of things"),
        413 => ("too-large", "The request is too large"),
        415 => ("media-type", "The content type is not the expected one"),
        422 => ("invalid", "What was asked for makes no sense"),
        429 => ("limit", "A limit of this host stands against it"),
        502 => ("peer", "Another host cannot be reached, or refuses"),
        500.. => ("failed", "Something failed on this host"),
        _ => ("refused", "The request was refused"),
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::NotFound(_) => StatusCode::NOT_FOUND,
            ControlError::Conflict(_) => StatusCode::CONFLICT,
            ControlError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ControlError::Limit(_) => StatusCode::TOO_MANY_REQUESTS,
            ControlError::Peer(_) => StatusCode::BAD_GATEWAY,
            ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl actix_web::ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        self.response("")
    }
}
