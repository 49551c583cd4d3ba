//! Which trace a migration belongs to: W3C Trace Context, as it is written in `traceparent`.
//!
//! Ids only. Nothing here measures, and nothing depends on what the peer says.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Text that is no `traceparent`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected a traceparent: 00-, 32 hexadecimal digits, 16 of them, 2 of them, not all zero")]
pub struct NotTraceParent;

/// A span that others are children of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceParent {
    /// The trace; not all zero.
    pub trace_id: [u8; 16],
    /// The span; not all zero.
    pub span_id: [u8; 8],
    /// Bit 0: somebody records this trace.
    pub flags: u8,
}

impl TraceParent {
    /// Bit of [`Self::flags`]: the trace is recorded.
    pub const SAMPLED: u8 = 1;

    /// Whether the ids are such as W3C allows.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id
            .iter()
            .try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], NotTraceParent> {
    let digits = text.as_bytes();
    let lower = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(lower) {
        return Err(NotTraceParent);
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| NotTraceParent)?;
    }
    Ok(out)
}

impl FromStr for TraceParent {
    type Err = NotTraceParent;

    /// Of later versions of the format, what comes after the flags is left out, as W3C says.
    fn from_str(text: &str) -> Result<Self, NotTraceParent> {
        let mut fields = text.split('-');
        let mut next = || fields.next().ok_or(NotTraceParent);
        let [version] = hex(next()?)?;
        let parent = Self {
            trace_id: hex(next()?)?,
            span_id: hex(next()?)?,
            flags: hex::<1>(next()?)?[0],
        };
        let more = fields.next().is_some();
        if version == 0xff || (version == 0 && more) || !parent.is_valid() {
            return Err(NotTraceParent);
        }
        Ok(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn is_read_from_what_is_written() {
        let parent: TraceParent = TEXT.parse().unwrap();
        assert!(parent.is_valid() && parent.is_sampled());
        assert_eq!(parent.to_string(), TEXT);
        let later = format!("01{}-what-the-future-brings", &TEXT[2..]);
        assert_eq!(later.parse(), Ok(parent));
    }

    #[test]
    fn what_is_none_is_refused() {
        let zero = "0".repeat(32);
        for wrong in [
            "",
            "00",
            "00-é",
            &TEXT.to_uppercase(),
            &TEXT[..54],
            &format!("{TEXT}-more"),
            &format!("ff{}", &TEXT[2..]),
            &format!("00-{zero}-00f067aa0ba902b7-01"),
            &format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", &zero[..16]),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(NotTraceParent), "{wrong}");
        }
    }
}
