//! The API with a fake host behind it, over TLS, for `scripts/fuzz-api`. Writes certificates to
//! the directory given (`ca.pem`, `admin-fuzz.pem`, `admin-fuzz.key`) and prints its address;
//! ends with its standard input.

#[path = "../tests/api/common/fake.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "shared with tests"
)]
mod fake;

use std::error::Error;
use std::path::PathBuf;

use tokio::io::AsyncReadExt;
use vmferry_service::api::{self, Listen, TlsListen};
use vmferry_transports::keys::Authority;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or("usage: fake-host DIRECTORY")?;
    let authority = Authority::new()?;
    let server = authority
        .issue_for("host-a", &["127.0.0.1"])?
        .write_to(&dir)?;
    authority.user("fuzz", 1)?.write_to(&dir)?;
    let listen = Listen {
        unix: None,
        tls: Some(TlsListen {
            address: ([127, 0, 0, 1], 0).into(),
            ca: server.ca,
            certificate: server.certificate,
            key: server.key,
        }),
    };
    let handle = api::serve(fake::FakeHost::new(), listen)?;
    let address = handle.tls_address().ok_or("no address")?;
    println!("https://{address}");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    handle.stop().await;
    Ok(())
}
