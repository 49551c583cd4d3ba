//! Ids and tokens that nobody can guess.

use rand::TryRngCore;
use rand::rngs::OsRng;

/// 128 bits from the system's generator.
///
/// # Errors
/// In words: it does not answer.
pub fn random_bits() -> Result<[u8; 16], String> {
    let mut bits = [0; 16];
    OsRng
        .try_fill_bytes(&mut bits)
        .map_err(|e| format!("no random numbers: {e}"))?;
    Ok(bits)
}
