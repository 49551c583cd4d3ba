//! The protocol, without any IO: bytes in, events out; requests in, bytes out.
//!
//! [`Handshake`] is the fixed newstyle negotiation up to an [`Export`]; [`Transmission`] is what
//! follows on the same connection. Neither believes the server: every length is checked before
//! anything is made of it, and what does not fit is a [`Violation`].

mod coverage;
mod handshake;
mod incoming;
mod replies;
mod transmission;

pub use handshake::{Handshake, Refusal, Step, Wish};
pub use transmission::{Command, Event, Request, Transmission};

use thiserror::Error;

/// Largest payload of one request unless the server says less; in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest string that a server may send, in bytes.
const MAX_STRING: usize = 4096;

/// The server does not keep to the protocol: the session cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the NBD server does not keep to the protocol: {0}")]
pub struct Violation(pub &'static str);

/// Sizes of requests that a server takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every offset and length is a multiple: a power of two, at most 65,536.
    pub minimum: u32,
    /// Best size and alignment: a power of two, not less than the minimum.
    pub preferred: u32,
    /// Largest payload: a multiple of the minimum.
    pub maximum: u32,
}

/// What a server exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub bytes: u64,
    /// Transmission flags, as they came: see [`Self::has`].
    pub flags: u16,
    /// Sizes of requests.
    pub sizes: BlockSizes,
    /// Replies to reads come in chunks.
    pub structured: bool,
}

/// What a server can do, as transmission flags.
pub mod flag {
    /// The flags are meant.
    pub const HAS_FLAGS: u16 = 1;
    /// Nothing can be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flushes are taken.
    pub const FLUSH: u16 = 1 << 2;
    /// Writes may ask to be stable when they are acknowledged.
    pub const FUA: u16 = 1 << 3;
    /// Trims are taken.
    pub const TRIM: u16 = 1 << 5;
    /// Ranges can be zeroed.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// A flush on one connection covers what was acknowledged on all, and no connection (of this
    /// or another client) reads what is stale.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

impl Export {
    /// Whether the server announced this [`flag`].
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0 && self.flags & flag::HAS_FLAGS != 0
    }

    /// Whether `self`, found after a reconnect, can take the place of `before`.
    ///
    /// # Errors
    /// What has changed.
    pub fn replaces(&self, before: &Self) -> Result<(), String> {
        if self.bytes < before.bytes {
            return Err(format!(
                "the export has {} bytes and had {}",
                self.bytes, before.bytes
            ));
        }
        if self.has(flag::READ_ONLY) && !before.has(flag::READ_ONLY) {
            return Err("the export is read-only now".to_owned());
        }
        if self.sizes.minimum > before.sizes.minimum {
            return Err(format!(
                "the export takes requests of {} bytes and more now; it took {}",
                self.sizes.minimum, before.sizes.minimum
            ));
        }
        let needed = [
            (flag::FLUSH, "flush"),
            (flag::TRIM, "trim"),
            (flag::WRITE_ZEROES, "write zeroes"),
            (flag::CAN_MULTI_CONN, "serve several connections coherently"),
        ];
        match needed.iter().find(|n| before.has(n.0) && !self.has(n.0)) {
            Some((_, what)) => Err(format!("the server could {what} and cannot any more")),
            None => Ok(()),
        }
    }
}

impl BlockSizes {
    /// What is to be assumed of a server that does not say.
    pub const UNSAID: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: MAX_PAYLOAD,
    };

    /// Checks what a server says, and keeps to our own limit.
    fn checked(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, Violation> {
        if !minimum.is_power_of_two() || minimum > 65_536 {
            return Err(Violation(
                "its minimum block size is no power of two up to 64 KiB",
            ));
        }
        if !preferred.is_power_of_two() || preferred < minimum {
            return Err(Violation(
                "its preferred block size is no power of two above the minimum",
            ));
        }
        // A sector has to fit.
        if maximum < minimum.max(512) {
            return Err(Violation(
                "its maximum block size is below the minimum, or below 512",
            ));
        }
        let grain = minimum.max(512);
        Ok(Self {
            minimum,
            preferred,
            maximum: maximum.min(MAX_PAYLOAD) / grain * grain,
        })
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
