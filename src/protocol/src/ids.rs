//! Names of things: plain numbers with their own types, so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Time since an arbitrary start, given to the core by its driver. The core has no clock.
pub type Time = Duration;

/// Text that is not 32 hexadecimal digits.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected 32 hexadecimal digits")]
pub struct NotHex;

fn parse_hex(text: &str) -> Result<[u8; 16], NotHex> {
    if text.len() != 32 || !text.is_ascii() {
        return Err(NotHex);
    }
    let mut out = [0; 16];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| NotHex)?;
    }
    Ok(out)
}

/// A migration, named by 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for MigrationId {
    type Err = NotHex;
    fn from_str(text: &str) -> Result<Self, NotHex> {
        parse_hex(text).map(Self)
    }
}

/// The one-time secret that ties connections to a migration: 128 random bits. Never printed.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Token([u8; 16]);

impl Token {
    /// A token of these bits.
    #[must_use]
    pub const fn new(bits: [u8; 16]) -> Self {
        Self(bits)
    }

    /// The bits, for sending.
    #[must_use]
    pub const fn bits(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether two tokens are the same, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let differ = self.0.iter().zip(&other.0).fold(0, |d, (a, b)| d | (a ^ b));
        differ == 0
    }

    /// The token as text for a configuration or control channel that is itself private.
    #[must_use]
    pub fn to_hex(&self) -> String {
        MigrationId(self.0).to_string()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = NotHex;
    fn from_str(text: &str) -> Result<Self, NotHex> {
        parse_hex(text).map(Self)
    }
}

/// A chunk of pages, numbered from 1 in the order in which the source hands them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_tokens_are_read_from_what_is_written() {
        let id = MigrationId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("xyz".parse::<MigrationId>(), Err(NotHex));
        assert_eq!("é".repeat(16).parse::<MigrationId>(), Err(NotHex));
        let token = Token::new([7; 16]);
        assert!(token.to_hex().parse::<Token>().unwrap().matches(&token));
        assert!(!token.matches(&Token::new([8; 16])));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
}
