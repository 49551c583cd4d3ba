//! The disk of the demo's guest: where its content is, and who serves it.

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};
use vmferry_machine::{DiskSource, DiskSpec};

use super::DemoError;
use super::show::Show;
use crate::cli::{DemoArgs, DiskArg};
use crate::doctor::disk_usable;

/// Serial id that the guest reads.
const SERIAL: &str = "vmferry-demo";

/// A disk, and the server behind it, where the demo has started one.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) spec: DiskSpec,
    _server: Option<Child>,
}

impl Disk {
    /// The disk that `args` ask for; what it needs is made below `dir`. Where nobody asked and
    /// this host cannot have one, there is none.
    pub(super) async fn make(
        args: &DemoArgs,
        dir: &Path,
        show: &Show,
    ) -> Result<Option<Self>, DemoError> {
        let default = match args.kernel {
            Some(_) => DiskArg::None,
            None => DiskArg::Auto,
        };
        let mut delay_ms = args.disk_delay_ms;
        let mut server = None;
        let source = match args.disk.as_ref().unwrap_or(&default) {
            DiskArg::None => return Ok(None),
            DiskArg::At(source) => source.clone(),
            DiskArg::Auto => {
                let path = dir.join("disk.img");
                let image = std::fs::File::create_new(&path).map_err(DemoError::Disk)?;
                image.set_len(size(args)).map_err(DemoError::Disk)?;
                DiskSource::File(path)
            }
            DiskArg::Nbdkit => {
                let socket = dir.join("nbd.sock");
                server = Some(nbdkit(&socket, size(args), delay_ms).await?);
                delay_ms = 0;
                DiskSource::Nbd(format!("nbd+unix:///?socket={}", socket.display()))
            }
        };
        let spec = DiskSpec {
            serial: SERIAL.to_owned(),
            queues: u16::from(args.vcpus),
            delay_ms,
            ..source.spec()
        };
        if args.disk.is_none()
            && let Err(why) = disk_usable(&spec)
        {
            show.step(&format!("the guest has no disk: {why}"));
            return Ok(None);
        }
        Ok(Some(Self {
            spec,
            _server: server,
        }))
    }
}

fn size(args: &DemoArgs) -> u64 {
    u64::from(args.disk_mib) << 20
}

/// Starts a server with an image in its memory, whose writes take `delay_ms` longer. It has its
/// socket when this returns.
async fn nbdkit(socket: &Path, bytes: u64, delay_ms: u32) -> Result<Child, DemoError> {
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--threads", "64", "--unix"])
        .arg(socket)
        .arg("--pidfile")
        .arg(socket.with_extension("pid"))
        .args(["--filter", "delay", "memory"])
        .arg(bytes.to_string())
        .arg(format!("wdelay={delay_ms}ms"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DemoError::Disk(io::Error::new(
            error.kind(),
            "nbdkit is not installed (Debian: apt-get install nbdkit); or give --disk auto",
        )),
        _ => DemoError::Disk(error),
    })?;
    // It writes its pid when it listens.
    while !socket.with_extension("pid").exists() {
        if let Some(status) = child.try_wait().map_err(DemoError::Disk)? {
            let what = format!("nbdkit ended at once: {status}");
            return Err(DemoError::Disk(io::Error::other(what)));
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(child)
}
