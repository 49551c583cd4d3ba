//! File systems of a test's own, gone with it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null;

use tempfile::TempDir;

/// Runs a test in a mount namespace of its own; skips it where that may not be had. Processes
/// that it starts are in it as well.
pub(crate) fn privately(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let run = move || {
            // SAFETY: concerns this thread only, and touches no memory.
            if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
                let why = io::Error::last_os_error();
                return println!("SKIPPED (no mount namespace to be had: {why})");
            }
            mount(
                "none",
                Path::new("/"),
                None,
                libc::MS_REC | libc::MS_PRIVATE,
                "",
            )
            .unwrap();
            test();
        };
        let thread = scope.spawn(run);
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) fn mount(
    source: &str,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let text = |s: &str| std::ffi::CString::new(s).unwrap();
    let (source, target, data) = (text(source), text(target.to_str().unwrap()), text(data));
    let kind = kind.map(text);
    // SAFETY: all pointers are to strings that live until the call returns.
    let rc = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ref().map_or(null(), |k| k.as_ptr()),
            flags,
            data.as_ptr().cast(),
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A block device of 8 MiB of zeros, with blocks of 4096 bytes.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    _dir: TempDir,
}

impl LoopDevice {
    /// None where there are no loop devices to be had; says so.
    pub(crate) fn new() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(&image)
            .output();
        match made {
            Ok(out) if out.status.success() => Some(Self {
                path: String::from_utf8(out.stdout).unwrap().trim().into(),
                _dir: dir,
            }),
            _ => {
                println!("SKIPPED (no loop devices): block devices");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // While it is open somewhere, it goes when that is closed.
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}
