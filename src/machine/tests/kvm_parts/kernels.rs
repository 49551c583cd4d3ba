//! The smallest kernels that show something, as ELF files with a PVH entry. Their code begins in
//! 32 bits and is assembled into this test; it runs at 1 MiB, where its ELF file puts it.

use std::arch::global_asm;
use std::path::PathBuf;

use vmferry_machine::{Boot, Console, MachineConfig, MachineKind};

/// Where the code runs.
const BASE: u32 = 0x10_0000;

global_asm!(
    r#"
    .pushsection .rodata
    .code32
    /* No handler for anything: an undefined instruction ends in a triple fault. */
    .globl triple_fault_start, triple_fault_end
triple_fault_start:
    mov esp, 0x12345678
    mov eax, offset no_handlers
    lidt [eax]
    ud2
    .set no_handlers, 0x100000 + . - triple_fault_start
    .word 0
    .long 0
triple_fault_end:

    /* Works for ever, without an exit. */
    .globl spin_start, spin_end
spin_start:
    jmp spin_start
spin_end:

    /* Halts for ever, deaf to interrupts. */
    .globl halt_start, halt_end
halt_start:
    cli
    hlt
    jmp halt_start
halt_end:

    /* Tells by the serial port what devices answer, then the first byte of the initrd and of the
       command line; then resets by port 0xcf9. */
    .globl devices_start, devices_end
devices_start:
    mov edx, 0x3fd
    in al, dx
    test al, 0x20               /* the transmitter is empty */
    setnz al
    add al, '0'
    mov edx, 0x3f8
    out dx, al
    mov edx, 0xe9
    in al, dx
    cmp al, 0xe9
    setz al
    add al, '0'
    mov edx, 0x3f8
    out dx, al
    mov edx, 0x9000             /* no such port */
    in eax, dx
    inc eax
    setz al
    add al, '0'
    mov edx, 0x3f8
    out dx, al
    mov dword ptr [0xd0000000], 5       /* no such memory */
    mov eax, [0xd0000000]
    inc eax
    setz al
    add al, '0'
    out dx, al
    mov esi, 0x6000             /* start info */
    mov edi, [esi + 24]
    mov al, [edi]
    out dx, al
    mov edi, [esi + 16]
    mov edi, [edi]
    mov al, [edi]
    out dx, al
    mov edx, 0xe9
    mov esi, offset text_at
    mov ecx, 5
    cld
    rep outsb
    mov edx, 0xcf9
    mov al, 6
    out dx, al
2:  hlt
    jmp 2b
    .set text_at, 0x100000 + . - devices_start
    .ascii "debug"
devices_end:

    /* In long mode: a breakpoint, whose handler says B, and a wait for the coprocessor; then
       resets by the keyboard controller. */
    .globl breakpoint_start, breakpoint_end
breakpoint_start:
    mov dword ptr [0x200000], 0x201003      /* 2 MiB from 0, mapped to themselves */
    mov dword ptr [0x201000], 0x202003
    mov dword ptr [0x202000], 0x83
    mov eax, 0x200000
    mov cr3, eax
    mov eax, 0x20
    mov cr4, eax
    mov ecx, 0xc0000080
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, 0x80000011
    mov cr0, eax
    mov eax, offset gdt_at
    lgdt [eax]
    .byte 0xea
    .long long_at
    .word 8
    .set long_at, 0x100000 + . - breakpoint_start
    .code64
    mov eax, offset idt_at
    lidt [rax]
    mov esp, 0x180000
    mov edx, 0x3f8
    int3
    fwait
    mov al, 'x'
    out dx, al
    mov al, 0xfe
    out 0x64, al
3:  hlt
    jmp 3b
    .set handler_at, 0x100000 + . - breakpoint_start
    mov al, 'B'
    out dx, al
    iretq
    .balign 8
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .set gdt_at, 0x100000 + . - breakpoint_start
    .word 23
    .long gdt_at - 24
    .balign 8
    .fill 6, 8, 0
    .word handler_at - 0x100000, 8, 0x8e00, 0x10, 0, 0, 0, 0
    .set idt_at, 0x100000 + . - breakpoint_start
    .word 63
    .long idt_at - 64, 0
breakpoint_end:
    .popsection
    "#
);

macro_rules! kernel {
    ($name:ident, $start:ident, $end:ident) => {
        /// An ELF file with this code.
        pub(crate) fn $name() -> Vec<u8> {
            unsafe extern "C" {
                static $start: u8;
                static $end: u8;
            }
            // SAFETY: both label the same run of read-only bytes, assembled above.
            let code = unsafe {
                let start = &raw const $start;
                let len = (&raw const $end).offset_from_unsigned(start);
                std::slice::from_raw_parts(start, len)
            };
            elf(code, BASE)
        }
    };
}

kernel!(triple_fault, triple_fault_start, triple_fault_end);
kernel!(spin, spin_start, spin_end);
kernel!(halt, halt_start, halt_end);
kernel!(devices, devices_start, devices_end);
kernel!(breakpoint, breakpoint_start, breakpoint_end);

/// Offset of the note in what [`elf`] makes.
pub(crate) const NOTE_AT: usize = 64 + 2 * 56;
/// Offset of the first program header.
pub(crate) const SEGMENT_AT: usize = 64;

/// An ELF file that loads `code` at 1 MiB and says to enter at `entry`.
pub(crate) fn elf(code: &[u8], entry: u32) -> Vec<u8> {
    let code_at = (NOTE_AT + 20) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend(bytes);
    put(&2u16.to_le_bytes());
    put(&62u16.to_le_bytes());
    put(&1u32.to_le_bytes());
    for word in [u64::from(entry), SEGMENT_AT as u64, 0] {
        put(&word.to_le_bytes());
    }
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        put(&half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, at: u64, len: u64| {
        put(&kind.to_le_bytes());
        put(&7u32.to_le_bytes());
        for word in [offset, at, at, len, len, 4] {
            put(&word.to_le_bytes());
        }
    };
    segment(1, code_at, u64::from(BASE), code.len() as u64);
    segment(4, NOTE_AT as u64, 0, 20);
    for word in [4u32, 4, 18] {
        put(&word.to_le_bytes());
    }
    put(b"Xen\0");
    put(&entry.to_le_bytes());
    put(code);
    file
}

/// A machine of 32 MiB that boots the kernel at `kernel`.
pub(crate) fn kernel_config(kernel: PathBuf, vcpus: u32) -> MachineConfig {
    MachineConfig {
        kind: MachineKind::Kvm,
        ram_bytes: 32 << 20,
        vcpus,
        boot: Boot::Kernel {
            kernel,
            initrd: None,
            cmdline: "console=ttyS0".to_owned(),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: Vec::new(),
    }
}
