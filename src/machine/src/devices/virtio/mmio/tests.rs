use proptest::prelude::*;
use vmferry_block::{DiskSource, Geometry};

use super::*;

fn offer() -> Offer {
    let geometry = Geometry {
        bytes: 1 << 20,
        block_size: 512,
        read_only: false,
        flush: true,
        discard: false,
        write_zeroes: false,
        max_transfer: 1 << 20,
    };
    Offer::new(&geometry, &DiskSource::File("x".into()).spec())
}

struct Device(Registers, Offer);

impl Device {
    fn new() -> Self {
        Self(Registers::new(1), offer())
    }

    fn get(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.read(register, &mut bytes, &self.1, Live::default());
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, register: u64, value: u32) -> Effect {
        self.0.write(register, &value.to_le_bytes(), &self.1)
    }

    fn features(&mut self, features: u64) {
        for half in 0..2 {
            self.set(0x24, half);
            self.set(0x20, (features >> (32 * half)) as u32);
        }
    }
}

#[test]
fn a_device_is_found_and_set_up() {
    let mut d = Device::new();
    let found = [0x00, 0x04, 0x08].map(|r| d.get(r));
    assert_eq!(found, [0x7472_6976, 2, 2]);
    let low = d.get(0x10);
    d.set(0x14, 1);
    let offered = u64::from(d.get(0x10)) << 32 | u64::from(low);
    assert_eq!(offered, d.1.features);
    d.set(0x14, 2);
    assert_eq!(d.get(0x10), 0);
    assert_eq!(d.set(0x70, 1), Effect::None);
    d.set(0x70, 3);
    d.features(offered);
    d.set(0x70, 11);
    assert_eq!(d.get(0x70), 11);
    assert_eq!((d.get(0x34), d.get(0x44)), (256, 0));
    for (register, value) in [(0x38, 64), (0x80, 16), (0x84, 1), (0x90, 2), (0xa0, 4)] {
        d.set(register, value);
    }
    d.set(0x44, 1);
    assert_eq!(d.set(0x70, 15), Effect::Start);
    assert_eq!(d.set(0x70, 15), Effect::None, "started once");
    let queue = QueueRegisters {
        size: 64,
        ready: true,
        table: 1 << 32 | 16,
        avail: 2,
        used: 4,
    };
    assert_eq!(d.0.queues, [queue]);
    d.set(0x38, 8);
    d.set(0x80, 0);
    assert_eq!(d.0.queues, [queue], "a queue in use is not changed");
    assert_eq!(d.set(0x50, 0), Effect::Notify);
    assert_eq!(d.set(0x64, 3), Effect::Acknowledge(3));
    assert_eq!(d.set(0x44, 0), Effect::StopQueue(0));
    assert_eq!(
        (d.get(0x44), d.set(0x44, 1), d.get(0x44)),
        (0, Effect::None, 0)
    );
    assert_eq!(d.set(0x70, 0), Effect::Reset);
    assert_eq!(d.0, Registers::new(1));
}

#[test]
fn features_that_are_not_offered_or_too_old_are_not_ok() {
    for features in [0, 1 << 29, 1 << 32 | 1 << 63] {
        let mut d = Device::new();
        d.features(features);
        d.set(0x70, 11);
        assert_eq!(d.get(0x70), 3, "{features:#x}");
        assert_eq!(d.set(0x70, 15), Effect::None);
        // It may try again.
        d.features(1 << 32);
        d.set(0x70, 11);
        d.features(0);
        assert_eq!((d.get(0x70), d.0.driver_features), (11, 1 << 32));
    }
}

#[test]
fn the_configuration_is_read_by_any_width() {
    let d = Device::new();
    let mut bytes = [0; 8];
    d.0.read(0x100, &mut bytes, &d.1, Live::default());
    assert_eq!(u64::from_le_bytes(bytes), 2048);
    let mut byte = [9];
    d.0.read(0x101, &mut byte, &d.1, Live::default());
    assert_eq!(byte, [8]);
    for beyond in [0x13c, 0x138, u64::MAX] {
        let mut bytes = [9; 8];
        d.0.read(beyond, &mut bytes, &d.1, Live::default());
        assert_eq!(bytes[4..], [0; 4]);
    }
    let live = Live {
        interrupts: 3,
        needs_reset: true,
    };
    let mut status = [0; 4];
    d.0.read(0x70, &mut status, &d.1, live);
    assert_eq!(status, [64, 0, 0, 0]);
    d.0.read(0x60, &mut status, &d.1, live);
    assert_eq!(status, [3, 0, 0, 0]);
}

proptest! {
    #[test]
    fn any_accesses_are_taken(
        accesses in prop::collection::vec((0..0x200u64, prop::collection::vec(any::<u8>(), 1..9)), 0..64),
    ) {
        let mut d = Device::new();
        for (register, mut data) in accesses {
            d.0.write(register, &data, &d.1);
            d.0.read(register, &mut data, &d.1, Live::default());
            prop_assert!(!d.0.started() || d.0.features_fit(&d.1));
        }
    }
}
