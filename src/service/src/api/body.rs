//! Requests' bodies and queries: read within limits, and refused in words.

use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{FromRequest, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use super::check::Check;
use super::problem::Refusal;

/// Most bytes of a body with JSON.
pub(super) const MAX_BODY: usize = 1 << 20;
/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A request's body: JSON of one type, within its limits.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Serialize + Check + 'static> FromRequest for Body<T> {
    type Error = Refusal;
    type Future = LocalBoxFuture<'static, Result<Self, Refusal>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let kind = expect_type(request, "application/json");
        let payload = payload.take();
        Box::pin(async move {
            kind?;
            let mut bytes = BytesMut::new();
            read(payload, MAX_BODY as u64, |chunk| {
                bytes.extend_from_slice(&chunk);
            })
            .await?;
            parse(&bytes).map(Self)
        })
    }
}

/// A body's content type has to be `wanted`, whatever its parameters.
pub(super) fn expect_type(request: &HttpRequest, wanted: &str) -> Result<(), Refusal> {
    let found = request
        .headers()
        .get(CONTENT_TYPE)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let essence = found
        .as_deref()
        .map(|t| t.split(';').next().unwrap_or(t).trim());
    if essence.is_some_and(|t| t.eq_ignore_ascii_case(wanted)) {
        return Ok(());
    }
    let what = found.map_or("there is no Content-Type".to_owned(), |t| {
        format!("the Content-Type is {t:?}")
    });
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("{what}: send {wanted}"),
    )
    .closing())
}

/// Hands a body over piece by piece: at most `most` bytes, in at most [`BODY_TIME`].
pub(super) async fn read(
    mut payload: Payload,
    most: u64,
    mut take: impl FnMut(Bytes),
) -> Result<u64, Refusal> {
    let mut total = 0u64;
    let reading = async {
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| match e {
                PayloadError::Incomplete(_) => Refusal::malformed("the body ends too early"),
                e => Refusal::malformed(format!("the body cannot be read: {e}")),
            })?;
            total += chunk.len() as u64;
            if total > most {
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than {most} bytes"),
                )
                .closing());
            }
            take(chunk);
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_TIME, reading).await {
        Ok(read) => read.map(|()| total),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the body took longer than {} s to come",
                BODY_TIME.as_secs()
            ),
        )
        .closing()),
    }
}

/// JSON of one type. What is no JSON is malformed; what is, and does not fit, is invalid.
fn parse<T: DeserializeOwned + Serialize + Check>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let e = e.into_inner();
        if e.classify() != Category::Data {
            return Refusal::malformed(format!("the body is no JSON: {e}"));
        }
        let at = match path.as_str() {
            "." | "?" => String::new(),
            path => format!("{path}: "),
        };
        let e = e.to_string();
        invalid(format!("{at}{e}{}", nearest(&e)))
    })?;
    json.end()
        .map_err(|e| Refusal::malformed(format!("the body goes on after its JSON: {e}")))?;
    let mut wrong = Vec::new();
    let (given, meant) = (serde_json::from_slice(bytes), serde_json::to_value(&value));
    if let (Ok(given), Ok(meant)) = (given, meant) {
        no_lists(&given, &meant, "", &mut wrong);
    }
    value.check(&mut wrong);
    if wrong.is_empty() {
        Ok(value)
    } else {
        Err(invalid(wrong.join("; ")))
    }
}

/// Lists in the place of objects, which serde takes for their fields in turn; the API's description
/// has no such thing.
fn no_lists(given: &Value, meant: &Value, at: &str, wrong: &mut Vec<String>) {
    match (given, meant) {
        (Value::Array(_), Value::Object(_)) => {
            let at = at.trim_start_matches('.');
            let about = if at.is_empty() { "the body" } else { at };
            wrong.push(format!("{about}: give an object, not a list"));
        }
        (Value::Object(given), Value::Object(meant)) => {
            for (key, given) in given {
                let meant = meant.get(key).unwrap_or(&Value::Null);
                no_lists(given, meant, &format!("{at}.{key}"), wrong);
            }
        }
        (Value::Array(given), Value::Array(meant)) => {
            for (n, (given, meant)) in given.iter().zip(meant).enumerate() {
                no_lists(given, meant, &format!("{at}[{n}]"), wrong);
            }
        }
        _ => {}
    }
}

fn invalid(detail: String) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

/// A request's query, of one type.
///
/// # Errors
/// 400, in words.
pub(super) fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Refusal> {
    serde_urlencoded::from_str(request.query_string()).map_err(|e| {
        let e = e.to_string();
        Refusal::malformed(format!("the query does not fit: {e}{}", nearest(&e)))
    })
}

/// Of serde's message about an unknown field or variant: which of the known ones was meant.
fn nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown ") {
        return String::new();
    }
    let Some(found) = quoted.next() else {
        return String::new();
    };
    quoted
        .map(|known| (strsim::normalized_damerau_levenshtein(found, known), known))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(String::new(), |(_, known)| {
            format!("; did you mean `{known}`?")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MigrationRequest, VmSpec};

    fn refused<T: DeserializeOwned + Serialize + Check + std::fmt::Debug>(body: &str) -> String {
        parse::<T>(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_field_is_named_with_its_nearest() {
        let why = refused::<MigrationRequest>(r#"{"to":"b","options":{"stream":2}}"#);
        assert!(
            why.starts_with("options.stream: unknown field `stream`"),
            "{why}"
        );
        assert!(why.ends_with("did you mean `streams`?"), "{why}");
        let why = refused::<VmSpec>(r#"{"zzzzzzzz":1}"#);
        assert!(
            why.contains("unknown field") && !why.contains("did you mean"),
            "{why}"
        );
    }

    #[test]
    fn a_list_is_no_object() {
        for (body, at) in [
            (
                r#"{"to":"b","options":[null,2]}"#,
                "options: give an object",
            ),
            (r#"["b"]"#, "the body: give an object"),
        ] {
            let why = refused::<MigrationRequest>(body);
            assert!(why.starts_with(at), "{why}");
        }
        let why = refused::<VmSpec>(r#"{"name":"a","ram_mib":64,"disks":[["file:/d"]]}"#);
        assert!(why.starts_with("disks[0]: give an object"), "{why}");
    }

    #[test]
    fn what_is_no_json_says_where() {
        for body in ["", "{", "{\"to\": b}", "{} x", "\u{1}"] {
            let why = refused::<MigrationRequest>(body);
            assert!(
                why.contains("line 1 column") || why.contains("missing"),
                "{body}: {why}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(
            refused::<MigrationRequest>(&deep).contains("line 1"),
            "no deep recursion"
        );
    }
}
