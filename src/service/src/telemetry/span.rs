//! A span as plain data.

/// What an attribute holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Self {
        Self::Float(x)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

/// Name and value; names say the unit, as in `vmferry.blackout_ms`.
pub type Attribute = (&'static str, Value);

/// What a span is to the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks the other host.
    Client,
    /// It answers the other host.
    Server,
    /// Within one host.
    Internal,
}

/// How a span ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing is claimed: it was cancelled, or says nothing by itself.
    Unset,
    /// Well.
    Ok,
    /// Not well; why, in words.
    Error(String),
}

/// A moment of a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub name: &'static str,
    /// When: nanoseconds since 1970, UTC.
    pub unix_ns: u64,
    /// More about it.
    pub attributes: Vec<Attribute>,
}

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
    /// The span that it is a part of; none for the root of a trace.
    pub parent: Option<[u8; 8]>,
    /// Whether that is on another host, or of another program.
    pub parent_is_remote: bool,
    /// Whether the trace is recorded by whoever began it; others are not exported.
    pub sampled: bool,
    /// What it is.
    pub name: String,
    /// See there.
    pub kind: Kind,
    /// Begin: nanoseconds since 1970, UTC, by this host's clock.
    pub start_ns: u64,
    /// End; not before the begin.
    pub end_ns: u64,
    /// More about it.
    pub attributes: Vec<Attribute>,
    /// Its moments.
    pub events: Vec<Event>,
    /// How it ended.
    pub status: Status,
}

impl Span {
    /// An attribute of it.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        let mut attributes = self.attributes.iter();
        attributes.find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}
