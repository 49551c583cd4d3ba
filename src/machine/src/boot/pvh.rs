//! The start info that a PVH kernel is handed: command line, RAM disk, memory map. Version 1 of
//! `hvm_start_info` in Xen's public header `arch-x86/hvm/start_info.h`.

use vmferry_memory::GuestRam;

use super::put;
use crate::MachineError;

/// Guest-physical address of the start info; EBX at the entry.
pub(crate) const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
/// Longest command line, its closing zero included.
const CMDLINE_BYTES: usize = 4096;
const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
/// RAM ends here below 1 MiB: the rest is the extended BIOS area, video memory and ROMs on a PC.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// RAM goes on here.
pub(super) const HIGH_START: u64 = 0x10_0000;

/// Writes the start info and all that it points to; `module` is the RAM disk's address and size.
pub(super) fn write(
    ram: &GuestRam,
    cmdline: &str,
    module: Option<(u64, u64)>,
) -> Result<(), MachineError> {
    if cmdline.len() >= CMDLINE_BYTES || cmdline.contains('\0') {
        return Err(MachineError::Config(format!(
            "the kernel's command line has {} bytes: at most {} without zeros are possible",
            cmdline.len(),
            CMDLINE_BYTES - 1
        )));
    }
    let map = memory_map(ram);
    let mut info = Vec::new();
    for word in [MAGIC, 1, 0, u32::from(module.is_some())] {
        info.extend(word.to_le_bytes());
    }
    let modules = if module.is_some() { MODULES } else { 0 };
    for address in [modules, CMDLINE, 0, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    for word in [map.len() as u32, 0] {
        info.extend(word.to_le_bytes());
    }
    put(ram, START_INFO, &info)?;
    if let Some((at, size)) = module {
        put(ram, MODULES, &words(&[at, size, 0, 0]))?;
    }
    let entries: Vec<u8> = map
        .iter()
        .flat_map(|&(at, size)| words(&[at, size, u64::from(TYPE_RAM)]))
        .collect();
    put(ram, MEMORY_MAP, &entries)?;
    put(ram, CMDLINE, cmdline.as_bytes())?;
    put(ram, CMDLINE + cmdline.len() as u64, &[0])
}

/// Address and size of every range of RAM that the kernel may use.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64)> {
    let mut map = vec![(0, LOW_END)];
    for region in ram.regions() {
        let start = region.range.gpa().max(HIGH_START);
        let end = region.range.gpa() + region.range.bytes();
        map.push((start, end - start));
    }
    map
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_bios_area_and_the_device_hole() {
        let ram = GuestRam::new(5 << 30).unwrap();
        assert_eq!(
            memory_map(&ram),
            [
                (0, LOW_END),
                (HIGH_START, (3 << 30) - HIGH_START),
                (4 << 30, 2 << 30)
            ]
        );
    }
}
