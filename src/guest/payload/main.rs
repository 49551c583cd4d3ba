//! The payload's ring-3 part: reads the command line, then steps the workload for ever. No
//! kernel, no interrupts, no allocation; see `boot.rs` for how it comes here.
#![no_std]
#![no_main]

#[path = "../src/abi.rs"]
mod abi;
mod boot;
#[path = "../src/disk/mod.rs"]
mod disk;
#[path = "../src/params.rs"]
mod params;
#[path = "../src/pattern.rs"]
mod pattern;
#[path = "../src/platform.rs"]
mod platform;
#[path = "../src/share.rs"]
mod share;
#[path = "../src/workload/mod.rs"]
mod workload;

use core::arch::asm;
use core::fmt::{self, Write};

/// Kept in MM7 and MXCSR, which compiled code never writes: FPU state that is lost is noticed.
const MARK: u64 = 0x766d_6665_7272_7921;
const MXCSR: u32 = 0x7f80;

struct Ports;

fn out(port: u16, value: u32) {
    // SAFETY: an OUT to the workload port touches no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

fn say(text: &[u8]) {
    for &b in text {
        // SAFETY: as `out`.
        unsafe { asm!("out dx, al", in("dx") abi::PORT_DEBUG, in("al") b, options(nomem, nostack)) }
    }
}

impl Write for Ports {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        say(text.as_bytes());
        Ok(())
    }
}

impl platform::Platform for Ports {
    fn tsc(&mut self) -> u64 {
        // SAFETY: RDTSC is allowed in ring 3 (CR4.TSD is clear).
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    fn heartbeat(&mut self, work: u64) {
        out(abi::PORT_HEARTBEAT, work as u32);
    }
    fn command(&mut self) -> u32 {
        let value;
        // SAFETY: as `out`.
        unsafe {
            asm!("in eax, dx", in("dx") abi::PORT_COMMAND, out("eax") value, options(nomem, nostack))
        }
        value
    }
    fn sleep_us(&mut self, us: u32) {
        out(abi::PORT_SLEEP, us);
    }
    fn verified(&mut self, result: u32) {
        match result {
            abi::VERIFY_OK => say(b"VERIFY OK\n"),
            abi::VERIFY_LEDGER => say(b"VERIFY FAIL ledger\n"),
            abi::VERIFY_REGISTERS => say(b"VERIFY FAIL registers\n"),
            abi::VERIFY_DISK => say(b"VERIFY FAIL disk\n"),
            // Never fails.
            page => drop(writeln!(self, "VERIFY FAIL page {}", page - 1)),
        }
        out(abi::PORT_VERIFIED, result);
    }
    fn ready(&mut self) {
        out(abi::PORT_READY, 0);
    }
    fn registers_intact(&mut self) -> bool {
        let (mark, mut mxcsr): (u64, u32) = (read_mark(), 0);
        // SAFETY: stores four bytes into `mxcsr`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack)) }
        mark == MARK && mxcsr & !0x3f == MXCSR
    }
    fn mmio_read32(&mut self, addr: u64) -> u32 {
        let value;
        // SAFETY: identity mapped; no RAM is there, so the VMM answers. A plain MOV, which every
        // KVM can emulate: a volatile read may become part of another instruction.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) value, in(reg) addr, options(nostack, preserves_flags));
        }
        value
    }
    fn mmio_write32(&mut self, addr: u64, value: u32) {
        // SAFETY: as `mmio_read32`.
        unsafe {
            asm!("mov [{}], {:e}", in(reg) addr, in(reg) value, options(nostack, preserves_flags));
        }
    }
    fn disk_beat(&mut self, completed: u64) {
        out(abi::PORT_DISK, completed as u32);
    }
    fn disk_failed(&mut self, failure: &disk::Failure) {
        // Never fails.
        drop(writeln!(self, "{failure}"));
    }
}

fn read_mark() -> u64 {
    let mark;
    // SAFETY: reads a register.
    unsafe { asm!("movq {}, mm7", out(reg) mark, options(nomem, nostack)) }
    mark
}

/// Whether RAM reaches from the arena's beginning for `len` bytes, by the memory map.
///
/// # Safety
/// `info` is the PVH start info.
unsafe fn fits(info: *const u8, len: u64) -> bool {
    // SAFETY: version 1 of the start info has the map's address at 40 and its length at 48.
    let (map, n) = unsafe {
        (
            info.add(40).cast::<u64>().read() as *const u64,
            info.add(48).cast::<u32>().read(),
        )
    };
    (0..n as usize).any(|i| {
        // SAFETY: entries are 24 bytes: address, size, type.
        let (at, size, kind) = unsafe {
            (
                map.add(i * 3).read(),
                map.add(i * 3 + 1).read(),
                map.add(i * 3 + 2).read(),
            )
        };
        kind as u32 == 1 && at <= abi::ARENA_GPA && at.saturating_add(size) >= abi::ARENA_GPA + len
    })
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(info: *const u8, vcpu: u32) -> ! {
    let mxcsr = MXCSR;
    // SAFETY: sets registers that nothing else uses.
    unsafe {
        asm!("movq mm7, {}", "ldmxcsr [{}]", in(reg) MARK, in(reg) &raw const mxcsr, options(nostack));
    }
    // SAFETY: the VMM hands over a start info whose command line ends in a zero.
    let params = unsafe {
        let line = info.add(24).cast::<u64>().read() as *const u8;
        let mut len = 0;
        while len < 4096 && *line.add(len) != 0 {
            len += 1;
        }
        params::Params::parse(core::slice::from_raw_parts(line, len))
    };
    // SAFETY: as above.
    if u64::from(vcpu) >= params.vcpus
        || !unsafe { fits(info, params.arena_pages() * params::PAGE) }
    {
        say(b"workload: this does not fit: less fill-mib= or disk-mib=, or more RAM (or more vcpus=)\n");
        loop {
            out(abi::PORT_SLEEP, abi::MAX_SLEEP_US);
        }
    }
    // SAFETY: the arena is RAM, identity mapped, and this vCPU alone has this index.
    let mut worker = unsafe { workload::Worker::new(abi::ARENA_GPA as *mut u8, params, vcpu) };
    loop {
        worker.step(&mut Ports);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(b"workload: panic\n");
    loop {
        out(abi::PORT_SLEEP, abi::MAX_SLEEP_US);
    }
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: by the caller.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: by the caller.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") n => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: by the caller.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}
