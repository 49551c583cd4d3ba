//! Writes the OpenAPI document to the file given, or to standard output:
//! `cargo run -p vmferry-service --bin openapi -- docs/openapi.json`.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let document = vmferry_service::api::openapi::document();
    match std::env::args_os().nth(1) {
        Some(file) => std::fs::write(file, document),
        None => std::io::stdout().write_all(document.as_bytes()),
    }
}
