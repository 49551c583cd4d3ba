//! The device's registers (virtio over MMIO, version 2: Virtio 1.2, 4.2.2), and its beginning.

use super::failure::Fault;
use super::layout::Layout;
use super::queue::Queue;
use crate::abi::DISK_MMIO_BASE;
use crate::params::{PAGE, Params};
use crate::platform::Platform;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
/// Low halves; the high ones follow.
const QUEUE_ADDRESSES: [u64; 3] = [0x080, 0x090, 0x0a0];
const CONFIG_GENERATION: u64 = 0x0fc;
/// Sectors of 512 bytes, 64 bits.
const CAPACITY: u64 = 0x100;
/// The upper half of it is the number of queues.
const NUM_QUEUES: u64 = 0x120;

const MAGIC_VALUE: u32 = 0x7472_6976;
const BLOCK_DEVICE: u32 = 2;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// Features of the lower word, and of the upper one.
const READ_ONLY: u32 = 1 << 5;
const FLUSH: u32 = 1 << 9;
const MULTI_QUEUE: u32 = 1 << 12;
const VERSION_1: u32 = 1 << 0;

/// Looks at what may take the device a moment, before that is a failure.
const PATIENCE: u32 = 1000;

fn get(platform: &mut impl Platform, register: u64) -> u32 {
    platform.mmio_read32(DISK_MMIO_BASE + register)
}

fn put(platform: &mut impl Platform, register: u64, value: u32) {
    platform.mmio_write32(DISK_MMIO_BASE + register, value);
}

/// Whether the device has given up on this driver.
pub(super) fn needs_reset(platform: &mut impl Platform) -> bool {
    get(platform, STATUS) & NEEDS_RESET != 0
}

/// Tells the device that queue `index` has something new.
pub(super) fn notify(platform: &mut impl Platform, index: u32) {
    put(platform, QUEUE_NOTIFY, index);
}

/// Brings the device up with a queue for each vCPU; `gpa` is where the driver's part of the arena
/// begins.
pub(super) fn initialise(
    platform: &mut impl Platform,
    params: &Params,
    layout: &Layout,
    gpa: u64,
) -> Result<(), Fault> {
    let magic = get(platform, MAGIC);
    if magic != MAGIC_VALUE {
        return Err(Fault::NoDisk { found: magic });
    }
    let version = get(platform, VERSION);
    exactly("its version", 2, version)?;
    let id = get(platform, DEVICE_ID);
    if id == 0 {
        return Err(Fault::NoDisk { found: id });
    }
    exactly("its kind", BLOCK_DEVICE, id)?;
    let begun = begin(platform, params, layout, gpa);
    if begun.is_err() {
        put(platform, STATUS, FAILED);
    }
    begun
}

fn begin(
    platform: &mut impl Platform,
    params: &Params,
    layout: &Layout,
    gpa: u64,
) -> Result<(), Fault> {
    put(platform, STATUS, 0);
    let mut status = get(platform, STATUS);
    for _ in 0..PATIENCE {
        if status == 0 {
            break;
        }
        status = get(platform, STATUS);
    }
    exactly("its status after a reset", 0, status)?;
    put(platform, STATUS, ACKNOWLEDGE);
    put(platform, STATUS, ACKNOWLEDGE | DRIVER);
    negotiate(platform, params)?;
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    put(platform, STATUS, ready);
    let status = get(platform, STATUS);
    exactly("its status once features are chosen", ready, status)?;
    configuration(platform, params)?;
    for index in 0..params.vcpus {
        let addresses = Queue::addresses(gpa + layout.part(index));
        queue(platform, index as u32, layout.queue_size(), addresses)?;
    }
    put(platform, STATUS, ready | DRIVER_OK);
    let status = get(platform, STATUS);
    exactly("its status at the end", ready | DRIVER_OK, status)
}

fn negotiate(platform: &mut impl Platform, params: &Params) -> Result<(), Fault> {
    put(platform, DEVICE_FEATURES_SEL, 0);
    let low = get(platform, DEVICE_FEATURES);
    put(platform, DEVICE_FEATURES_SEL, 1);
    let high = get(platform, DEVICE_FEATURES);
    if params.disk_write > 0 {
        exactly("its feature 'read-only'", 0, low & READ_ONLY)?;
    }
    let mut wanted = 0;
    if params.disk_flush > 0 {
        wanted |= FLUSH;
    }
    if params.vcpus > 1 {
        wanted |= MULTI_QUEUE;
    }
    exactly("its lower feature word", wanted, low & wanted)?;
    exactly("its upper feature word", VERSION_1, high & VERSION_1)?;
    put(platform, DRIVER_FEATURES_SEL, 0);
    // Where it is offered, it is taken: without it a device may write through.
    put(platform, DRIVER_FEATURES, wanted | low & FLUSH);
    put(platform, DRIVER_FEATURES_SEL, 1);
    put(platform, DRIVER_FEATURES, VERSION_1);
    Ok(())
}

fn configuration(platform: &mut impl Platform, params: &Params) -> Result<(), Fault> {
    let mut generation = get(platform, CONFIG_GENERATION);
    for _ in 0..PATIENCE {
        let low = u64::from(get(platform, CAPACITY));
        let sectors = low | u64::from(get(platform, CAPACITY + 4)) << 32;
        let queues = match params.vcpus {
            1 => 1,
            _ => get(platform, NUM_QUEUES) >> 16,
        };
        let now = get(platform, CONFIG_GENERATION);
        if now == generation {
            let needed = params.disk_blocks * (PAGE / 512);
            at_least("its size in sectors (see disk-mib=)", needed, sectors)?;
            return at_least(
                "its number of queues (one for each vCPU)",
                params.vcpus,
                queues.into(),
            );
        }
        generation = now;
    }
    Err(Fault::Device {
        what: "its configuration changes all the time, and its generation",
        expected: 0,
        found: generation.into(),
    })
}

fn queue(
    platform: &mut impl Platform,
    index: u32,
    size: u16,
    addresses: [u64; 3],
) -> Result<(), Fault> {
    put(platform, QUEUE_SEL, index);
    let ready = get(platform, QUEUE_READY);
    exactly("readiness of a queue not yet set up", 0, ready)?;
    let max = get(platform, QUEUE_NUM_MAX);
    at_least(
        "the size of a queue (see disk-depth=)",
        size.into(),
        max.into(),
    )?;
    put(platform, QUEUE_NUM, size.into());
    for (register, address) in QUEUE_ADDRESSES.into_iter().zip(addresses) {
        put(platform, register, address as u32);
        put(platform, register + 4, (address >> 32) as u32);
    }
    put(platform, QUEUE_READY, 1);
    let ready = get(platform, QUEUE_READY);
    exactly("readiness of a queue", 1, ready)
}

fn exactly(what: &'static str, expected: u32, found: u32) -> Result<(), Fault> {
    check(found == expected, what, expected.into(), found.into())
}

fn at_least(what: &'static str, expected: u64, found: u64) -> Result<(), Fault> {
    check(found >= expected, what, expected, found)
}

fn check(right: bool, what: &'static str, expected: u64, found: u64) -> Result<(), Fault> {
    if right {
        return Ok(());
    }
    Err(Fault::Device {
        what,
        expected,
        found,
    })
}
