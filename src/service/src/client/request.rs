//! One request and its answer. Each has a connection of its own: there are few, and none is lost
//! to a connection that the other side has just closed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use serde::de::DeserializeOwned;

use super::connect::Target;
use super::error::{ClientError, chain};
use crate::api::types::ProblemDetails;

/// How long an answer may take.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// Most zeros sent at once.
const PIECE: usize = 64 << 10;

/// What a request carries.
#[derive(Debug)]
pub(super) enum Sent {
    Nothing,
    Json(Bytes),
    /// So many zeros.
    Zeros(u64),
}

impl Sent {
    const fn content_type(&self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Json(_) => Some("application/json"),
            Self::Zeros(_) => Some("application/octet-stream"),
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let this = self.get_mut();
        let piece = match this {
            Self::Nothing | Self::Zeros(0) => return Poll::Ready(None),
            Self::Json(bytes) => {
                let all = std::mem::take(bytes);
                *this = Self::Nothing;
                all
            }
            Self::Zeros(left) => {
                let piece = (*left).min(PIECE as u64);
                *left -= piece;
                Bytes::from_static(ZEROS.get(..piece as usize).unwrap_or_default())
            }
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Nothing => 0,
            Self::Json(bytes) => bytes.len() as u64,
            Self::Zeros(left) => *left,
        })
    }
}

impl Target {
    /// Sends a request; the answer's head. Problems are errors.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Sent,
    ) -> Result<Response<Incoming>, ClientError> {
        let sender = self.connect().await?;
        self.send_on(sender, method, path, body).await
    }

    /// As [`Target::send`], on a connection that is there.
    pub(super) async fn send_on(
        &self,
        mut sender: SendRequest<Sent>,
        method: Method,
        path: &str,
        body: Sent,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.authority());
        if let Some(kind) = body.content_type() {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request.body(body).map_err(|e| self.strange(e))?;
        let answer = self.timely(sender.send_request(request)).await?;
        let answer = answer.map_err(|e| self.failed(chain(&e)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = self.body(answer).await?;
        let mut problem: ProblemDetails = serde_json::from_slice(&bytes)
            .map_err(|_| self.strange(format!("{status}, and no problem document")))?;
        // What was answered counts, not what is written in it.
        problem.status = status.as_u16();
        Err(ClientError::Problem(Box::new(problem)))
    }

    /// Sends a request; the JSON that is answered.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Sent,
    ) -> Result<T, ClientError> {
        let answer = self.send(method, path, body).await?;
        self.json(answer).await
    }

    /// The JSON of an answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        answer: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let bytes = self.body(answer).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.strange(e))
    }

    /// The body of an answer.
    pub(super) async fn body(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let reading = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        match self.timely(reading).await? {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => Err(self.strange(e)),
            // The service may have ended in the middle.
            Err(e) => Err(self.failed(chain(e.as_ref()))),
        }
    }

    async fn timely<T>(&self, what: impl Future<Output = T>) -> Result<T, ClientError> {
        let timed = tokio::time::timeout(ANSWER_TIME, what).await;
        timed.map_err(|_| self.silent(ANSWER_TIME))
    }

    pub(super) fn silent(&self, time: Duration) -> ClientError {
        ClientError::Timeout {
            to: self.to_string(),
            seconds: time.as_secs(),
        }
    }

    pub(super) fn strange(&self, why: impl ToString) -> ClientError {
        ClientError::Strange {
            to: self.to_string(),
            why: why.to_string(),
        }
    }
}

/// A part of a path, as URLs write it: what somebody has typed must not become another path.
pub(super) fn part(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_paths_stay_parts() {
        assert_eq!(part("web-1"), "web-1");
        assert_eq!(part("../a?b"), "%2E%2E%2Fa%3Fb");
    }
}
