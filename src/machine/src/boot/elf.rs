//! Loads an ELF kernel by its program headers, and finds its PVH entry in its notes. The file may
//! be anything: whatever is wrong with it is an error in words.

use vmferry_memory::GuestRam;
use vmferry_protocol::{PAGE_SIZE, PageRange};

use super::low_ram;
use super::pvh::HIGH_START;
use super::source::Source;
use crate::MachineError;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has fewer than ten.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// A kernel's have a few hundred bytes.
const MAX_NOTE_BYTES: u64 = 1 << 20;
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const XEN_PHYS32_ENTRY: u32 = 18;

/// A kernel in RAM.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Where vCPUs enter, in 32-bit mode.
    pub(super) entry: u32,
    /// First address after all its segments.
    pub(super) end: u64,
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// Loads the kernel from `source` into `ram`, which is all zero.
pub(super) fn load(ram: &GuestRam, source: &Source<'_>) -> Result<Loaded, MachineError> {
    let bad = |why: String| MachineError::Config(format!("{} {why}", source.name()));
    let headers = program_headers(source)?;
    let mut end = 0;
    for header in headers.iter().filter(|h| h.kind == LOAD) {
        if header.memory_size == 0 {
            continue;
        }
        let segment_end = header.paddr.checked_add(header.memory_size);
        let file_end = header.offset.checked_add(header.file_size);
        let (Some(segment_end), Some(file_end)) = (segment_end, file_end) else {
            return Err(bad(
                "has a segment that ends beyond all addresses".to_owned()
            ));
        };
        if header.file_size > header.memory_size || file_end > source.len() {
            return Err(bad(
                "is cut off or garbled: a segment is larger than the file has bytes for it"
                    .to_owned(),
            ));
        }
        if header.paddr < HIGH_START {
            return Err(bad(format!(
                "wants to be loaded at {:#x}, below 1 MiB, where boot data lies",
                header.paddr
            )));
        }
        let first = header.paddr / PAGE_SIZE;
        let range = PageRange::new(first, segment_end.div_ceil(PAGE_SIZE) - first);
        if ram.region_of(range).is_err() {
            return Err(bad(format!(
                "needs RAM up to {} MiB, and the machine has {} MiB below the device hole: give \
                 it more RAM",
                segment_end.div_ceil(1 << 20),
                low_ram(ram) >> 20
            )));
        }
        source.copy_to(ram, header.offset, header.file_size, header.paddr)?;
        end = end.max(segment_end);
    }
    if end == 0 {
        return Err(bad("has nothing to load".to_owned()));
    }
    let mut entry = None;
    for header in headers.iter().filter(|h| h.kind == NOTE) {
        let within = header.offset.checked_add(header.file_size);
        if header.file_size > MAX_NOTE_BYTES || within.is_none_or(|end| end > source.len()) {
            return Err(bad("has notes that are cut off or too long".to_owned()));
        }
        let mut notes = vec![0; header.file_size as usize];
        source.read(header.offset, &mut notes)?;
        let align = if header.align == 8 { 8 } else { 4 };
        entry = entry.or(find_entry(&notes, align));
    }
    let entry = entry.ok_or_else(|| {
        bad("has no PVH entry note: give a kernel (vmlinux) built with CONFIG_PVH=y".to_owned())
    })?;
    if ram.region_of(PageRange::new(entry / PAGE_SIZE, 1)).is_err() {
        return Err(bad(format!("has its entry at {entry:#x}, outside RAM")));
    }
    Ok(Loaded {
        entry: entry as u32,
        end,
    })
}

fn program_headers(source: &Source<'_>) -> Result<Vec<ProgramHeader>, MachineError> {
    let bad = |why: &str| MachineError::Config(format!("{} {why}", source.name()));
    let not_elf = "is not an ELF file: give an uncompressed kernel (vmlinux), not a bzImage";
    if source.len() < HEADER_BYTES as u64 {
        return Err(bad(not_elf));
    }
    let mut header = [0; HEADER_BYTES];
    source.read(0, &mut header)?;
    if header[..4] != *b"\x7fELF" {
        return Err(bad(not_elf));
    }
    // 64 bits, little endian.
    if header[4..6] != [2, 1] || half(&header, 18) != Some(MACHINE_X86_64) {
        return Err(bad("is not a 64-bit x86 ELF file"));
    }
    let garbled = || bad("is garbled: it has no program headers that make sense");
    let offset = quad(&header, 32).ok_or_else(garbled)?;
    let size = half(&header, 54).ok_or_else(garbled)?;
    let count = half(&header, 56).ok_or_else(garbled)?;
    if usize::from(size) != PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS {
        return Err(garbled());
    }
    let bytes = usize::from(count) * PROGRAM_HEADER_BYTES;
    let end = offset.checked_add(bytes as u64);
    if end.is_none_or(|end| end > source.len()) {
        return Err(garbled());
    }
    let mut table = vec![0; bytes];
    source.read(offset, &mut table)?;
    table
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(|h| {
            Some(ProgramHeader {
                kind: word(h, 0)?,
                offset: quad(h, 8)?,
                paddr: quad(h, 24)?,
                file_size: quad(h, 32)?,
                memory_size: quad(h, 40)?,
                align: quad(h, 48)?,
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(garbled)
}

/// The PVH entry among `notes`, whose parts are padded to `align` bytes.
fn find_entry(notes: &[u8], align: usize) -> Option<u64> {
    let mut at = 0;
    while at + 12 <= notes.len() {
        let name_size = word(notes, at)? as usize;
        let data_size = word(notes, at + 4)? as usize;
        let kind = word(notes, at + 8)?;
        let name_at = at + 12;
        let data_at = name_at.checked_add(name_size.checked_next_multiple_of(align)?)?;
        let name = notes.get(name_at..name_at.checked_add(name_size)?)?;
        let data = notes.get(data_at..data_at.checked_add(data_size)?)?;
        if name == b"Xen\0" && kind == XEN_PHYS32_ENTRY {
            let entry = match data.len() {
                4 => word(data, 0).map(u64::from),
                8 => quad(data, 0),
                _ => None,
            };
            return entry.filter(|&e| e <= u64::from(u32::MAX));
        }
        at = data_at.checked_add(data_size.checked_next_multiple_of(align)?)?;
    }
    None
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_loads_and_its_entry_is_found() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let loaded = load(&ram, &Source::Memory(vmferry_guest::PAYLOAD)).unwrap();
        assert!((0x10_0000..0x20_0000).contains(&loaded.entry));
        assert!(loaded.end < vmferry_guest::abi::ARENA_GPA);
    }

    #[test]
    fn garbled_and_cut_off_files_are_errors() {
        let ram = GuestRam::new(16 << 20).unwrap();
        let head = 8192.min(vmferry_guest::PAYLOAD.len());
        for len in (0..head).step_by(61) {
            assert!(load(&ram, &Source::Memory(&vmferry_guest::PAYLOAD[..len])).is_err());
        }
        // Every byte of the headers and notes, with values that tend to break sums.
        for at in 0..HEADER_BYTES + 4 * PROGRAM_HEADER_BYTES {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = vmferry_guest::PAYLOAD.to_vec();
                file[at] = value;
                // It may load or not, as long as it does not panic.
                let _ = load(&ram, &Source::Memory(&file));
            }
        }
    }

    #[test]
    fn notes_that_end_too_early_or_overflow_have_no_entry() {
        let mut note = Vec::new();
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(0x12_3456u32.to_le_bytes());
        assert_eq!(find_entry(&note, 4), Some(0x12_3456));
        for len in 0..note.len() {
            assert_eq!(find_entry(&note[..len], 4), None);
        }
        for at in 0..8 {
            let mut bad = note.clone();
            bad[at] = 0xff;
            assert_eq!(find_entry(&bad, 4), None);
        }
    }
}
