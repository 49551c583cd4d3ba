//! Files keep the contract of backends: direct, through the page cache, on another file system,
//! on a block device, slow.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
mod suite;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::mounts::{LoopDevice, mount, privately};
use suite::{DISK, Made, ReadOnly};
use tempfile::TempDir;
use vmferry_block::{BlockBackend, Caching, FileBackend, Role, Slow};

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DISK).unwrap();
    path
}

fn file(dir: TempDir, ReadOnly(read_only): ReadOnly, caching: Caching) -> Made {
    let path = image(dir.path());
    let disk = FileBackend::open(&path, read_only, Role::Owner, caching).unwrap();
    Made {
        disk: Box::new(disk),
        keep: Box::new(dir),
    }
}

#[test]
fn direct() {
    suite::run(&|read_only| file(TempDir::new().unwrap(), read_only, Caching::Direct));
}

#[test]
fn through_the_page_cache() {
    suite::run(&|read_only| file(TempDir::new().unwrap(), read_only, Caching::Buffered));
}

#[test]
fn in_shared_memory() {
    let make = |read_only| {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        file(dir, read_only, Caching::Direct)
    };
    suite::run(&make);
}

/// A file system without direct requests, holes, or ranges of zeros.
#[test]
fn on_a_file_system_that_can_do_little() {
    privately(|| {
        let root = TempDir::new().unwrap();
        mount("none", root.path(), Some("ramfs"), 0, "").unwrap();
        suite::run(&|read_only| {
            let dir = TempDir::new_in(root.path()).unwrap();
            let made = file(dir, read_only, Caching::Direct);
            assert!(read_only.0 || !made.disk.geometry().discard);
            assert_eq!(made.disk.may_move().is_ok(), read_only.0);
            made
        });
    });
}

#[test]
fn slow() {
    suite::run(&|read_only| {
        let Made { disk, keep } = file(TempDir::new().unwrap(), read_only, Caching::Direct);
        let disk = Box::new(Slow::new(disk, Duration::from_millis(3)).unwrap());
        Made { disk, keep }
    });
}

/// A block device with blocks of 4096 bytes.
#[test]
fn on_a_block_device() {
    let Some(device) = LoopDevice::new() else {
        return;
    };
    drop(device);
    suite::run(&|ReadOnly(read_only)| {
        let device = LoopDevice::new().expect("there was one before");
        let disk = FileBackend::open(&device.path, read_only, Role::Owner, Caching::Direct);
        let disk = Box::new(disk.unwrap());
        assert_eq!(disk.geometry().block_size, 4096);
        assert!(disk.may_move().is_ok());
        Made {
            disk,
            keep: Box::new(device),
        }
    });
}
