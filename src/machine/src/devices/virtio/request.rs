//! A descriptor chain as a request. The guest may be hostile: nothing that it writes is read
//! twice, everything is bounded, and what cannot even be answered is an error.

use virtio_bindings::virtio_blk as blk;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};
use vmferry_block::{Extent, JobKind};
use vmferry_memory::{GuestMemory, GuestRam};

use super::offer::{Offer, SECTOR};

/// Status bytes.
pub(super) const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
pub(super) const IO_ERROR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
pub(super) const UNSUPPORTED: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes that describe a range to discard or to write zeros to: sector, sectors, flags.
const SEGMENT: usize = 16;

/// Guest-physical address and length in bytes.
pub(super) type Run = (u64, u32);

/// Why a chain cannot be answered: the queue is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

/// What a chain asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Guest-physical address of the status byte, which is RAM.
    pub(super) status: u64,
    /// What.
    pub(super) what: What,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Something for the backend.
    Job {
        kind: JobKind,
        extent: Extent,
        /// Data to read or write, in the order of the disk's bytes.
        runs: Vec<Run>,
    },
    /// The disk's serial id, into these.
    Identify(Vec<Run>),
    /// Nothing that can be done; the status byte.
    Refused(u8),
}

/// Reads the chain.
///
/// # Errors
/// [`Broken`] where it does not end, lies outside RAM, or has no byte for a status.
pub(super) fn parse(
    chain: DescriptorChain<&GuestMemory>,
    ram: &GuestRam,
    offer: &Offer,
) -> Result<Request, Broken> {
    let (mut readable, mut writable) = gather(chain, offer)?;
    let status = take_last(&mut writable).ok_or(Broken("a request without a status byte"))?;
    let memory = ram.guest_memory();
    if memory.read_obj::<u8>(GuestAddress(status)).is_err() {
        return Err(Broken("a status byte outside RAM"));
    }
    let refuse = |status_byte| What::Refused(status_byte);
    let what = match take_front::<HEADER>(memory, &mut readable) {
        Some(header) => judge(&header, memory, readable, writable, offer).unwrap_or_else(refuse),
        None => refuse(IO_ERROR),
    };
    Ok(Request { status, what })
}

/// The chain's runs that are to be read, and those that are to be written.
fn gather(
    mut chain: DescriptorChain<&GuestMemory>,
    offer: &Offer,
) -> Result<(Vec<Run>, Vec<Run>), Broken> {
    let most = offer.segments as usize + 2;
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut more = true;
    for descriptor in chain.by_ref().take(most) {
        let run = (descriptor.addr().0, descriptor.len());
        if descriptor.is_write_only() {
            writable.push(run);
        } else if writable.is_empty() {
            readable.push(run);
        } else {
            return Err(Broken("a request that is read after it is written"));
        }
        more = descriptor.has_next();
    }
    // The crate ends a chain that loops or leaves its table before its last descriptor.
    match more {
        false => Ok((readable, writable)),
        true => Err(Broken(
            "a request that loops, is too long, or lies outside RAM",
        )),
    }
}

fn judge(
    header: &[u8; HEADER],
    memory: &GuestMemory,
    mut readable: Vec<Run>,
    writable: Vec<Run>,
    offer: &Offer,
) -> Result<What, u8> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        blk::VIRTIO_BLK_T_IN => transfer(JobKind::Read, sector, writable, offer),
        blk::VIRTIO_BLK_T_OUT if offer.read_only => Err(IO_ERROR),
        blk::VIRTIO_BLK_T_OUT => transfer(JobKind::Write, sector, readable, offer),
        blk::VIRTIO_BLK_T_FLUSH if offer.flush => Ok(What::Job {
            kind: JobKind::Flush,
            extent: Extent::default(),
            runs: Vec::new(),
        }),
        blk::VIRTIO_BLK_T_GET_ID => Ok(What::Identify(writable)),
        blk::VIRTIO_BLK_T_DISCARD if offer.discard => {
            let segment = take_front(memory, &mut readable).ok_or(IO_ERROR)?;
            clear(&segment, &readable, offer, |unmap| match unmap {
                false => Ok(JobKind::Discard),
                true => Err(UNSUPPORTED),
            })
        }
        blk::VIRTIO_BLK_T_WRITE_ZEROES if offer.write_zeroes => {
            let segment = take_front(memory, &mut readable).ok_or(IO_ERROR)?;
            clear(&segment, &readable, offer, |unmap| {
                Ok(JobKind::WriteZeroes { unmap })
            })
        }
        _ => Err(UNSUPPORTED),
    }
}

fn transfer(kind: JobKind, sector: u64, runs: Vec<Run>, offer: &Offer) -> Result<What, u8> {
    let len: u64 = runs.iter().map(|(_, len)| u64::from(*len)).sum();
    if len == 0 || !len.is_multiple_of(SECTOR) || len > offer.max_transfer {
        return Err(IO_ERROR);
    }
    Ok(What::Job {
        kind,
        extent: extent(sector, len, offer)?,
        runs: runs.into_iter().filter(|(_, len)| *len > 0).collect(),
    })
}

fn clear(
    segment: &[u8; SEGMENT],
    rest: &[Run],
    offer: &Offer,
    kind: impl FnOnce(bool) -> Result<JobKind, u8>,
) -> Result<What, u8> {
    // One range a request.
    if rest.iter().any(|(_, len)| *len > 0) {
        return Err(IO_ERROR);
    }
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = *segment;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR;
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if flags & !blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
        return Err(UNSUPPORTED);
    }
    let kind = kind(flags != 0)?;
    if len == 0 || len > offer.max_clear {
        return Err(IO_ERROR);
    }
    Ok(What::Job {
        kind,
        extent: extent(sector, len, offer)?,
        runs: Vec::new(),
    })
}

fn extent(sector: u64, len: u64, offer: &Offer) -> Result<Extent, u8> {
    let offset = sector.checked_mul(SECTOR).ok_or(IO_ERROR)?;
    let extent = Extent::new(offset, len);
    match extent.is_within(offer.bytes) {
        true => Ok(extent),
        false => Err(IO_ERROR),
    }
}

/// Takes the last byte off `runs`.
fn take_last(runs: &mut Vec<Run>) -> Option<u64> {
    while let Some((gpa, len)) = runs.last_mut() {
        if *len == 0 {
            runs.pop();
            continue;
        }
        *len -= 1;
        return gpa.checked_add(u64::from(*len));
    }
    None
}

/// Reads `N` bytes and takes them off the front of `runs`; none where there are fewer, or not RAM.
fn take_front<const N: usize>(memory: &GuestMemory, runs: &mut [Run]) -> Option<[u8; N]> {
    let (mut bytes, mut at) = ([0; N], 0);
    for (gpa, len) in runs {
        let n = (*len as usize).min(N - at);
        if n == 0 {
            continue;
        }
        memory
            .read_slice(&mut bytes[at..at + n], GuestAddress(*gpa))
            .ok()?;
        *gpa = gpa.checked_add(n as u64)?;
        *len -= n as u32;
        at += n;
        if at == N {
            return Some(bytes);
        }
    }
    None
}
