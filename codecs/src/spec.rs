//! Codecs by name, as on the command line.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A codec and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodecSpec {
    /// No compression.
    Raw,
    /// LZ4.
    Lz4,
    /// Zstandard, −5 to 9.
    Zstd(i8),
    /// Brotli, 0 to 5.
    Brotli(u8),
}

/// A name that no codec has, or a level it has not.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no codec '{0}'; choose one of: auto, raw, lz4, zstd[:-5..9], brotli[:0..5]")]
pub struct UnknownCodec(String);

impl FromStr for CodecSpec {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, UnknownCodec> {
        let unknown = || UnknownCodec(text.to_owned());
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<i8>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, level) {
            ("raw", None) => Ok(Self::Raw),
            ("lz4", None) => Ok(Self::Lz4),
            ("zstd", level @ (None | Some(-5..=9))) => Ok(Self::Zstd(level.unwrap_or(1))),
            ("brotli", None) => Ok(Self::Brotli(1)),
            ("brotli", Some(level @ 0..=5)) => Ok(Self::Brotli(level.unsigned_abs())),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for CodecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Brotli(level) => write!(f, "brotli:{level}"),
        }
    }
}

/// Which codec is used: one, or for each chunk the one that suits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecChoice {
    /// The selector chooses ([`crate::selector`]).
    Auto,
    /// This one, and raw where it saves nothing.
    Fixed(CodecSpec),
}

impl FromStr for CodecChoice {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, UnknownCodec> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Fixed),
        }
    }
}

impl fmt::Display for CodecChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(spec) => spec.fmt(f),
        }
    }
}
