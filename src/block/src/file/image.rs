//! A raw image or block device, open: what it is like, and how it wants to be read and written.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::aligned::Aligned;
use crate::{Geometry, Role};

/// Whether the page cache is gone around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// With `O_DIRECT` where it can be had, else through the page cache, with a warning.
    Direct,
    /// Through the page cache. The disk cannot move to another host then.
    Buffered,
}

/// What the kernel asks of direct requests: powers of two, in bytes. All 1 without `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: usize,
    /// Of offsets and lengths.
    pub(super) disk: usize,
}

impl Alignment {
    const NONE: Self = Self { memory: 1, disk: 1 };

    fn checked(memory: u32, disk: u32) -> Option<Self> {
        // Sectors are the least that is ever asked for.
        let (memory, disk) = (memory as usize, disk.max(512) as usize);
        let fine = |n: usize| n.is_power_of_two() && n <= 64 << 10;
        (fine(memory) && fine(disk)).then_some(Self { memory, disk })
    }
}

/// Most bytes of one read or write.
const MAX_TRANSFER: u32 = 32 << 20;

/// An open file and what is known of it.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: File,
    pub(super) geometry: Geometry,
    pub(super) alignment: Alignment,
    /// Why it is read and written through the page cache, if it is.
    pub(super) cached: Option<String>,
}

impl Image {
    /// Opens `path`. For an inspector only to look; a disk that is to be written must be writable
    /// for it as well.
    pub(super) fn open(
        path: &Path,
        read_only: bool,
        role: Role,
        caching: Caching,
    ) -> Result<Self, String> {
        let refused = |e| refusal(&e, read_only);
        // Opening a FIFO or a terminal has effects, and may never return.
        let before = std::fs::metadata(path).map_err(refused)?;
        check_type(before.file_type())?;
        if role == Role::Inspector && !read_only {
            let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
            rustix::fs::access(path, access).map_err(|e| refused(e.into()))?;
        }
        let read_only = read_only || role == Role::Inspector;
        let (file, alignment, cached) = open_file(path, read_only, caching).map_err(refused)?;
        let meta = file.metadata().map_err(refused)?;
        check_type(meta.file_type())?;
        let bytes = size(&file).map_err(refused)?;
        check_size(bytes)?;
        let mut image = Self {
            geometry: Geometry {
                bytes,
                block_size: alignment.disk.max(512) as u32,
                read_only,
                flush: !read_only,
                discard: !read_only && takes_discards(&file, &meta, bytes),
                write_zeroes: !read_only,
                max_transfer: MAX_TRANSFER,
            },
            file,
            alignment,
            cached,
        };
        if !bytes.is_multiple_of(alignment.disk as u64) {
            image = image.without_direct(path, read_only)?;
        }
        if let Some(why) = &image.cached
            && caching == Caching::Direct
        {
            tracing::warn!(
                "disk {} is read and written through the page cache: {why}",
                path.display()
            );
        }
        Ok(image)
    }

    /// Whether two hosts see the same disk, of which one or both write unless it is `read_only`.
    pub(super) fn may_move(&self, read_only: bool) -> Result<(), String> {
        match &self.cached {
            Some(why) if !read_only => Err(format!(
                "it is read and written through the host's page cache ({why}), and another host \
                 may see old data: put it on a file system that takes direct requests (O_DIRECT)"
            )),
            _ => Ok(()),
        }
    }

    /// The last block is not whole: direct requests cannot reach it.
    fn without_direct(self, path: &Path, read_only: bool) -> Result<Self, String> {
        let unit = self.alignment.disk;
        let (file, alignment, _) =
            open_file(path, read_only, Caching::Buffered).map_err(|e| refusal(&e, read_only))?;
        let geometry = Geometry {
            block_size: 512,
            ..self.geometry
        };
        Ok(Self {
            file,
            alignment,
            geometry,
            cached: Some(format!(
                "its size is not a multiple of {unit} bytes, what its storage takes at once; grow \
                 it to one"
            )),
        })
    }
}

fn refusal(e: &io::Error, read_only: bool) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => {
            "does not exist: make it (truncate -s SIZE FILE), or correct the path".to_owned()
        }
        io::ErrorKind::PermissionDenied if read_only => {
            "may not be read: give this user access to it".to_owned()
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "may not be written: give this user access to it, or make the disk read-only".to_owned()
        }
        _ => format!("cannot be opened: {e}"),
    }
}

fn check_type(kind: FileType) -> Result<(), String> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err("is neither a file nor a block device: give a raw image or a block device".to_owned())
}

fn check_size(bytes: u64) -> Result<(), String> {
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > 1 << 62 {
        return Err(format!(
            "has {bytes} bytes: a disk has a multiple of 512, and at least one (truncate -s SIZE \
             makes an image of a size)"
        ));
    }
    Ok(())
}

fn size(mut file: &File) -> io::Result<u64> {
    // A block device's metadata has no size.
    file.seek(SeekFrom::End(0))
}

fn open_file(
    path: &Path,
    read_only: bool,
    caching: Caching,
) -> io::Result<(File, Alignment, Option<String>)> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    let cached = if caching == Caching::Direct {
        match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => match alignment(&file)? {
                Some(alignment) => return Ok((file, alignment, None)),
                None => "its file system takes no direct requests",
            },
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                "its file system takes no direct requests"
            }
            Err(e) => return Err(e),
        }
    } else {
        "it was opened so"
    };
    Ok((
        options.open(path)?,
        Alignment::NONE,
        Some(cached.to_owned()),
    ))
}

/// What direct requests to `file` need; none if they are not taken.
fn alignment(file: &File) -> io::Result<Option<Alignment>> {
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(told) = told
        && told.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        return Ok(Alignment::checked(
            told.stx_dio_mem_align,
            told.stx_dio_offset_align,
        ));
    }
    if file.metadata()?.file_type().is_block_device() {
        let sector = rustix::fs::ioctl_blksszget(file)?;
        return Ok(Alignment::checked(sector, sector));
    }
    // An older kernel, or a file system that does not tell: whatever reads is what it takes.
    for unit in [512, 4096] {
        let mut buffer = Aligned::new(unit as usize, unit as usize);
        if file.read_at(buffer.bytes_mut(), 0).is_ok() {
            return Ok(Alignment::checked(unit, unit));
        }
    }
    Ok(None)
}

/// Whether holes can be punched.
fn takes_discards(file: &File, meta: &Metadata, bytes: u64) -> bool {
    if meta.file_type().is_block_device() {
        return device_punches(meta.rdev());
    }
    // Beyond its end a file has nothing to lose.
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let at = bytes.next_multiple_of(1 << 20) as libc::off_t;
    // SAFETY: the descriptor is open for the call, which touches no memory.
    let rc = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, 1 << 20) };
    rc == 0
}

/// The kernel punches holes into devices that write zeros by themselves.
fn device_punches(device: u64) -> bool {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let limit = |queue: &str| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/write_zeroes_max_bytes");
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // A partition has its disk's queue.
    limit("queue").or_else(|| limit("../queue")).unwrap_or(0) > 0
}
