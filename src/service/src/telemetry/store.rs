//! A migration's spans on disk, as OTLP JSON.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value as Json;

use super::otlp::{Origin, to_otlp_json};
use super::span::Span;

/// Name of the file in a migration's directory.
pub const FILE: &str = "trace.json";
/// A file larger than this is none of ours.
const MOST_BYTES: u64 = 64 << 20;

/// Writes the spans of this side to `path`, in one step: there is the old file or the new one.
///
/// # Errors
/// As the file system says.
pub fn write(path: &Path, origin: &Origin, spans: &[Span]) -> io::Result<()> {
    let json = to_otlp_json(origin, spans).map_err(io::Error::other)?;
    let mut text = serde_json::to_vec(&json)?;
    text.push(b'\n');
    let unfinished = path.with_extension("json.new");
    let mut file = fs::File::create(&unfinished)?;
    file.write_all(&text)?;
    file.sync_data()?;
    fs::rename(&unfinished, path)
}

/// Reads them, as OTLP JSON.
///
/// # Errors
/// As the file system says, or in words where it is no JSON.
pub fn read(path: &Path) -> io::Result<Json> {
    let bytes = fs::metadata(path)?.len();
    if bytes > MOST_BYTES {
        let why = format!("{} has {bytes} bytes: that is no trace", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
