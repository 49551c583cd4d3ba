//! The table of the MultiProcessor Specification 1.4: processors, I/O APIC, interrupt lines.
//! Kernels that find neither it nor ACPI tables leave the APICs alone.

use super::pvh::LOW_END;

/// Where it lies: the first place in which kernels look beside the first KiB.
pub(super) const ADDRESS: u64 = LOW_END;

const POINTER_BYTES: u64 = 16;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const SPEC_1_4: u8 = 4;
const ISA_BUS: u8 = 0;
/// All pins of the I/O APIC: those beyond the ISA bus's are the disks'.
const PINS: u8 = 24;
/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// Pointer structure and table for `vcpus` processors, whose APIC ids are their indices.
pub(super) fn table(vcpus: u32) -> Vec<u8> {
    let io_apic_id = vcpus as u8;
    let mut entries = Vec::new();
    for id in 0..vcpus as u8 {
        let enabled_and_boot = 1 | u8::from(id == 0) << 1;
        let mut processor = vec![0, id, APIC_VERSION, enabled_and_boot];
        // Signature (family 6), features (FPU, APIC), reserved.
        processor.extend([0x600_u32, 0x201, 0, 0].map(u32::to_le_bytes).concat());
        entries.push(processor);
    }
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    let io_apic = [2, io_apic_id, IO_APIC_VERSION, 1];
    entries.push([&io_apic[..], &IO_APIC.to_le_bytes()].concat());
    for irq in 0..PINS {
        entries.push(vec![3, INT, 0, 0, ISA_BUS, irq, io_apic_id, irq]);
    }
    entries.push(vec![4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let count = entries.len() as u16;
    let body = entries.concat();
    let mut header = Vec::new();
    header.extend(b"PCMP");
    header.extend((44 + body.len() as u16).to_le_bytes());
    header.extend([SPEC_1_4, 0]);
    header.extend(b"VMFERRY vmferry     ");
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(LOCAL_APIC.to_le_bytes());
    header.extend([0; 4]);
    let mut table = [header, body].concat();
    table[7] = checksum(&table);

    let mut pointer = b"_MP_".to_vec();
    pointer.extend(((ADDRESS + POINTER_BYTES) as u32).to_le_bytes());
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    [pointer, table].concat()
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_to_zero_and_fits_the_kibibyte_that_it_has() {
        for vcpus in 1..=8 {
            let all = table(vcpus);
            let (pointer, table) = all.split_at(16);
            assert_eq!((checksum(pointer), checksum(table)), (0, 0));
            assert_eq!(table.len(), 44 + vcpus as usize * 20 + 28 * 8);
            assert_eq!(
                usize::from(table[4]) | usize::from(table[5]) << 8,
                table.len()
            );
            assert_eq!(u32::from(table[34]), vcpus + 28);
            assert!(all.len() <= 1024);
        }
    }
}
