//! Writes `config/host.toml`, or the file that is named.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let here = || {
        PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../config/host.toml"
        ))
    };
    let at = std::env::args_os().nth(1).map_or_else(here, PathBuf::from);
    std::fs::write(at, vmferry_service::config::host_toml())
}
