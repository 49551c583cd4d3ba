//! From the PVH entry to ring 3, with as little in ring 0 as can be: software KVM emulates every
//! instruction there. Page tables, GDT and TSSs are laid out at build time.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18          /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_entry

    .section .boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:                  /* EBX: start info, EDI: index of this vCPU */
    mov eax, offset pml4
    mov cr3, eax
    mov eax, 0x620          /* PAE, OSFXSR, OSXMMEXCPT */
    mov cr4, eax
    mov ecx, 0xc0000080
    mov eax, 0x901          /* EFER: SCE, LME, NXE */
    xor edx, edx
    wrmsr
    mov eax, 0x80050033
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea              /* far jump into 64-bit code */
    .long long_mode
    .word 0x10

    .code64
long_mode:
    mov eax, edi
    shl eax, 4
    add eax, 0x40           /* TSS selector of this vCPU */
    ltr ax
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    mov eax, edi            /* stack: 64 KiB for each vCPU, from the top */
    inc eax
    shl eax, 16
    add eax, offset stacks
    mov rsp, rax
    push 0x2b
    push rax
    push 2
    push 0x33
    lea rax, [rip + ring3]
    push rax
    iretq
ring3:
    mov esi, edi
    mov edi, ebx
    call guest_main
    ud2

    .section .tables, "aw"
    .balign 4096
    /* Identity mapping of 64 GiB in 2 MiB pages: present, writable, user, accessed, dirty. */
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pdpt:
    .set n, 0
    .rept 64
    .quad pd + n * 4096 + 0x27
    .set n, n + 1
    .endr
    .fill 448, 8, 0
pd:
    .set n, 0
    .rept 32768
    .quad n * 0x200000 + 0xe7
    .set n, n + 1
    .endr
    .balign 64
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    /* 0x10: ring 0 code */
    .quad 0x00cf93000000ffff    /* 0x18: ring 0 data */
    .quad 0
    .quad 0x00cff3000000ffff    /* 0x2b: ring 3 data */
    .quad 0x00affb000000ffff    /* 0x33: ring 3 code */
    .quad 0
    .set n, 0
    .rept 8                     /* 0x40: a TSS for each vCPU */
    .word 0x0128
    .word (0x200000 + n * 512) & 0xffff
    .byte ((0x200000 + n * 512) >> 16) & 0xff
    .byte 0x89, 0
    .byte (0x200000 + n * 512) >> 24
    .quad 0
    .set n, n + 1
    .endr
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .section .tss, "aw"
tss:
    .rept 8                     /* 104 bytes, then an I/O bitmap of zeros: every port below 0x600 */
    .fill 102, 1, 0
    .word 104
    .fill 192, 1, 0
    .byte 0xff
    .fill 215, 1, 0
    .endr

    .section .bss
    .balign 4096
    .globl stacks
stacks:
    .skip 8 * 65536
    .text
    "#
);
