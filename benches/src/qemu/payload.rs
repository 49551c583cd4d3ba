//! The built-in payload as QEMU boots it, by PVH like vmferry, but behind QEMU's own firmware.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_guest::{PAYLOAD, abi};

/// Between the payload and its arena nothing lies: here QEMU's entry is put.
const STUB: u32 = abi::ARENA_GPA as u32 - 0x1000;
/// Bytes of a program header.
const HEADER: usize = 56;

fn number<const N: usize>(elf: &[u8], at: usize) -> Result<u64, String> {
    let bytes = elf.get(at..at + N).ok_or("the payload is cut off")?;
    Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

fn put(elf: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), String> {
    let to = elf.get_mut(at..at + bytes.len());
    to.ok_or("the payload is cut off")?.copy_from_slice(bytes);
    Ok(())
}

/// The payload with one more segment: it clears EDI, in which the payload looks for its vCPU's
/// index and QEMU's firmware leaves what it likes, and goes to the payload's own entry.
///
/// # Errors
/// Where the payload is not what this knows how to change.
fn payload() -> Result<Vec<u8>, String> {
    let mut elf = PAYLOAD.to_vec();
    let headers = number::<8>(&elf, 32)? as usize;
    let n = number::<2>(&elf, 56)? as usize;
    let (mut note, mut first) = (None, elf.len());
    for at in (0..n).map(|i| headers + i * HEADER) {
        let offset = number::<8>(&elf, at + 8)? as usize;
        first = first.min(offset);
        if number::<4>(&elf, at)? == 4 {
            // Behind three lengths and the name.
            note = Some(offset + 16);
        }
    }
    let note = note.ok_or("the payload has no PVH note")?;
    if headers + (n + 1) * HEADER > first {
        return Err("the payload has no room for another program header".to_owned());
    }
    let entry = number::<4>(&elf, note)? as u32;
    // xor edi, edi; jmp entry
    let mut stub = vec![0x31, 0xff, 0xe9];
    stub.extend(entry.wrapping_sub(STUB + 7).to_le_bytes());
    elf.resize(elf.len().next_multiple_of(4096), 0);
    let (place, len) = (u64::from(STUB), stub.len() as u64);
    let mut header = Vec::new();
    // PT_LOAD; readable, writable, executable.
    header.extend([1u32, 7].map(u32::to_le_bytes).concat());
    let words = [elf.len() as u64, place, place, len, len, 4096];
    header.extend(words.map(u64::to_le_bytes).concat());
    elf.extend(stub);
    put(&mut elf, headers + n * HEADER, &header)?;
    put(&mut elf, 56, &(n as u16 + 1).to_le_bytes())?;
    put(&mut elf, note, &STUB.to_le_bytes())?;
    put(&mut elf, 24, &place.to_le_bytes())?;
    Ok(elf)
}

/// Writes the payload for QEMU to `path`.
///
/// # Errors
/// In words.
pub fn write(path: &Path) -> Result<(), String> {
    std::fs::write(path, payload()?).map_err(|e| format!("{}: {e}", path.display()))
}

/// Frequency of this host's time stamp counter in kHz, measured: the payload asks for it.
#[must_use]
pub fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let (began, from) = (Instant::now(), now());
    thread::sleep(Duration::from_millis(100));
    let (ticks, us) = (now() - from, began.elapsed().as_micros() as u64);
    ticks * 1000 / us.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_a_stub_that_goes_to_the_payloads_own() {
        let (old, new) = (PAYLOAD, payload().unwrap());
        assert_eq!(number::<2>(&new, 56), number::<2>(old, 56).map(|n| n + 1));
        assert_eq!(number::<8>(&new, 24).unwrap(), u64::from(STUB));
        let stub = &new[new.len() - 7..];
        assert_eq!(stub[..3], [0x31, 0xff, 0xe9]);
        let by = number::<4>(stub, 3).unwrap() as u32;
        let entry = u64::from(by.wrapping_add(STUB + 7));
        assert_eq!(entry, number::<8>(old, 24).unwrap());
    }
}
