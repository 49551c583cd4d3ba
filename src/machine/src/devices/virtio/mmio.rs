//! The registers of a virtio device over MMIO, version 2 (virtio 1.2, 4.2.2). Pure: a write says
//! what it asks for.
//!
//! The driver may be hostile: what it sets for a queue is kept as it is and judged when it starts
//! the device.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config as cfg;

use super::MAX_QUEUES;
use super::offer::{Offer, bit};

/// Most entries of a queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Offset of the register that a driver writes a queue's number to.
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
/// Status bits.
pub(super) const DRIVER_OK: u32 = cfg::VIRTIO_CONFIG_S_DRIVER_OK;
pub(super) const FEATURES_OK: u32 = cfg::VIRTIO_CONFIG_S_FEATURES_OK;
pub(super) const NEEDS_RESET: u32 = cfg::VIRTIO_CONFIG_S_NEEDS_RESET;
pub(super) const STATUS_BITS: u32 = cfg::VIRTIO_CONFIG_S_ACKNOWLEDGE
    | cfg::VIRTIO_CONFIG_S_DRIVER
    | DRIVER_OK
    | FEATURES_OK
    | cfg::VIRTIO_CONFIG_S_FAILED;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const DEVICE_BLOCK: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"VMFY");
const CONFIG: u64 = 0x100;

/// A queue as the driver has set it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) size: u32,
    pub(super) ready: bool,
    /// Guest-physical addresses of descriptor table, available ring and used ring.
    pub(super) table: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// What a driver has set, as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

/// What registers show that the device's worker changes meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    /// Interrupts that the driver has not acknowledged.
    pub(super) interrupts: u32,
    /// The driver has broken a queue, or what it had asked for before a reset is not done with.
    pub(super) needs_reset: bool,
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The queues are set: begin.
    Start,
    /// Forget everything.
    Reset,
    /// Let go of this queue.
    StopQueue(u16),
    /// There may be something in the queues.
    Notify,
    /// These interrupts were seen.
    Acknowledge(u32),
}

impl Registers {
    /// After a reset, with so many queues.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            queues: vec![QueueRegisters::default(); usize::from(queues.min(MAX_QUEUES))],
            ..Self::default()
        }
    }

    /// Whether the driver has asked for `feature`.
    pub(super) fn has(&self, feature: u32) -> bool {
        self.driver_features & bit(feature) != 0
    }

    /// Whether the driver has started the device.
    pub(super) fn started(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// A read at `offset`. Registers are read by four bytes, the configuration space by any
    /// number; anything else reads as zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], offer: &Offer, live: Live) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let rest = usize::try_from(at)
                .ok()
                .and_then(|at| offer.config.get(at..))
                .unwrap_or_default();
            for (to, byte) in data.iter_mut().zip(rest) {
                *to = *byte;
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset, offer, live).to_le_bytes());
        }
    }

    fn register(&self, offset: u64, offer: &Offer, live: Live) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => DEVICE_BLOCK,
            0x00c => VENDOR,
            0x010 => half(offer.features, self.device_features_sel),
            0x034 if queue.is_some() => u32::from(QUEUE_SIZE),
            0x044 => queue.map_or(0, |q| u32::from(q.ready)),
            0x060 => live.interrupts,
            0x070 => self.status | if live.needs_reset { NEEDS_RESET } else { 0 },
            // Length and base of shared memory: there is none.
            0x0b0..=0x0bc => u32::MAX,
            // The configuration does not change: its generation stays 0.
            _ => 0,
        }
    }

    /// A write at `offset`. Only registers can be written, by four bytes.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], offer: &Offer) -> Effect {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return Effect::None;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x014 => self.device_features_sel = value,
            0x020 if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            0x024 => self.driver_features_sel = value,
            0x030 => self.queue_sel = value,
            QUEUE_NOTIFY => return Effect::Notify,
            0x064 => return Effect::Acknowledge(value),
            0x070 => return self.set_status(value, offer),
            _ => return self.write_queue(offset, value),
        }
        Effect::None
    }

    fn write_queue(&mut self, offset: u64, value: u32) -> Effect {
        let started = self.started();
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return Effect::None;
        };
        if offset == 0x044 {
            let was = queue.ready;
            // Queues are set before the device is started.
            queue.ready = value == 1 && (was || !started);
            if was && !queue.ready && started {
                return Effect::StopQueue(self.queue_sel as u16);
            }
        } else if !queue.ready {
            match offset {
                0x038 => queue.size = value,
                0x080 | 0x084 => set_half(&mut queue.table, (offset >> 2) as u32 & 1, value),
                0x090 | 0x094 => set_half(&mut queue.avail, (offset >> 2) as u32 & 1, value),
                0x0a0 | 0x0a4 => set_half(&mut queue.used, (offset >> 2) as u32 & 1, value),
                _ => {}
            }
        }
        Effect::None
    }

    fn set_status(&mut self, value: u32, offer: &Offer) -> Effect {
        if value == 0 {
            *self = Self::new(self.queues.len() as u16);
            return Effect::Reset;
        }
        let before = self.status;
        // A driver takes no bit back but by a reset.
        let mut status = before | value & STATUS_BITS;
        if status & FEATURES_OK & !before != 0 && !self.features_fit(offer) {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.status = status;
        match status & DRIVER_OK & !before {
            0 => Effect::None,
            _ => Effect::Start,
        }
    }

    /// Whether the driver asks for what is offered, and knows the standard.
    pub(super) fn features_fit(&self, offer: &Offer) -> bool {
        self.driver_features & !offer.features == 0 && self.has(cfg::VIRTIO_F_VERSION_1)
    }
}

/// Bits 0 to 31 of `value`, or 32 to 63; no others exist.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value >> 32 << 32 | u64::from(half),
        1 => *value = *value & u64::from(u32::MAX) | u64::from(half) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
