//! What a disk offers to its driver: features, and the configuration space of a virtio-blk device
//! (virtio 1.2, 5.2.4).

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::{virtio_config, virtio_ring};
use vmferry_block::{DiskSpec, Geometry};

/// Bytes of the unit in which a driver names places on a disk.
pub(super) const SECTOR: u64 = 512;
/// Most runs of guest memory of a request, where the backend takes that much.
const SEGMENTS: u32 = 128;
const PAGE: u32 = 4096;
/// Most bytes of a discard or of zeros to be written: what the storage has to do is not to take
/// for ever.
const MAX_CLEAR: u64 = 1 << 30;
const CONFIG_BYTES: usize = 60;

/// Everything that the driver may want, and what becomes of it.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// Feature bits.
    pub(super) features: u64,
    /// The configuration space.
    pub(super) config: [u8; CONFIG_BYTES],
    /// Size of the disk in bytes.
    pub(super) bytes: u64,
    /// What offsets and lengths of writes are a multiple of, in bytes.
    pub(super) block_size: u32,
    /// Nothing may be written.
    pub(super) read_only: bool,
    /// Requests of these kinds are taken.
    pub(super) flush: bool,
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
    /// Most runs of guest memory of a request, beside header and status.
    pub(super) segments: u32,
    /// Most bytes of a read or write; of a discard or of zeros.
    pub(super) max_transfer: u64,
    pub(super) max_clear: u64,
    /// What the guest reads as the disk's serial id.
    pub(super) serial: [u8; blk::VIRTIO_BLK_ID_BYTES as usize],
}

/// The bit of a feature.
pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

impl Offer {
    /// For a disk as described, whose backend has this geometry.
    pub(super) fn new(geometry: &Geometry, spec: &DiskSpec) -> Self {
        let read_only = geometry.read_only || spec.read_only;
        let segments = (geometry.max_transfer / PAGE).clamp(1, SEGMENTS);
        let mut serial = [0; blk::VIRTIO_BLK_ID_BYTES as usize];
        for (to, byte) in serial.iter_mut().zip(spec.serial.bytes()) {
            *to = byte;
        }
        let mut offer = Self {
            features: bit(virtio_config::VIRTIO_F_VERSION_1)
                | bit(virtio_ring::VIRTIO_RING_F_EVENT_IDX)
                | bit(virtio_ring::VIRTIO_RING_F_INDIRECT_DESC)
                | bit(blk::VIRTIO_BLK_F_SIZE_MAX)
                | bit(blk::VIRTIO_BLK_F_SEG_MAX)
                | bit(blk::VIRTIO_BLK_F_BLK_SIZE)
                | bit(blk::VIRTIO_BLK_F_TOPOLOGY),
            config: [0; CONFIG_BYTES],
            bytes: geometry.bytes / SECTOR * SECTOR,
            block_size: geometry.block_size.max(SECTOR as u32),
            read_only,
            flush: geometry.flush,
            discard: geometry.discard && !read_only,
            write_zeroes: geometry.write_zeroes && !read_only,
            segments,
            max_transfer: u64::from(geometry.max_transfer),
            max_clear: MAX_CLEAR,
            serial,
        };
        let optional = [
            (offer.read_only, blk::VIRTIO_BLK_F_RO),
            (offer.flush, blk::VIRTIO_BLK_F_FLUSH),
            (offer.discard, blk::VIRTIO_BLK_F_DISCARD),
            (offer.write_zeroes, blk::VIRTIO_BLK_F_WRITE_ZEROES),
            (spec.queues > 1, blk::VIRTIO_BLK_F_MQ),
        ];
        for (_, feature) in optional.iter().filter(|(offered, _)| *offered) {
            offer.features |= bit(*feature);
        }
        offer.fill(geometry, spec.queues);
        offer
    }

    fn fill(&mut self, geometry: &Geometry, queues: u16) {
        let segment = geometry.max_transfer / self.segments / SECTOR as u32 * SECTOR as u32;
        let sectors = self.block_size / SECTOR as u32;
        let max_clear = (self.max_clear / SECTOR) as u32;
        self.put(0, &(self.bytes / SECTOR).to_le_bytes());
        self.put(8, &segment.to_le_bytes());
        self.put(12, &self.segments.to_le_bytes());
        self.put(20, &self.block_size.to_le_bytes());
        // Physical blocks are as large; alignment offset, least and best size of requests in blocks.
        self.put(24, &[0, 0]);
        self.put(26, &1u16.to_le_bytes());
        self.put(28, &1u32.to_le_bytes());
        self.put(34, &queues.to_le_bytes());
        if self.discard {
            self.put(36, &max_clear.to_le_bytes());
            self.put(40, &1u32.to_le_bytes());
            self.put(44, &sectors.to_le_bytes());
        }
        if self.write_zeroes {
            self.put(48, &max_clear.to_le_bytes());
            self.put(52, &1u32.to_le_bytes());
            // It may also give the space back.
            self.put(56, &[1]);
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn geometry() -> Geometry {
        Geometry {
            bytes: 1 << 20,
            block_size: 4096,
            read_only: false,
            flush: true,
            discard: true,
            write_zeroes: true,
            max_transfer: 1 << 20,
        }
    }

    fn spec() -> DiskSpec {
        vmferry_block::DiskSource::File("x".into()).spec()
    }

    #[test]
    fn the_configuration_space_has_everything_in_its_place() {
        let offer = Offer::new(&geometry(), &spec());
        let u32_at = |at: usize| u32::from_le_bytes(offer.config[at..at + 4].try_into().unwrap());
        assert_eq!((u32_at(0), u32_at(4)), (2048, 0));
        assert_eq!((u32_at(8), u32_at(12)), (8192, 128));
        assert_eq!((u32_at(20), offer.config[24], u32_at(28)), (4096, 0, 1));
        assert_eq!(offer.config[34..36], [1, 0]);
        assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 21, 1, 8));
        assert_eq!((u32_at(48), u32_at(52), offer.config[56]), (1 << 21, 1, 1));
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_changes_it() {
        let read_only = DiskSpec {
            read_only: true,
            queues: 4,
            ..spec()
        };
        let small = Geometry {
            max_transfer: 10_000,
            ..geometry()
        };
        let offer = Offer::new(&small, &read_only);
        let has = |f| offer.features & bit(f) != 0;
        assert!(has(blk::VIRTIO_BLK_F_RO) && has(blk::VIRTIO_BLK_F_MQ));
        assert!(!has(blk::VIRTIO_BLK_F_DISCARD) && !has(blk::VIRTIO_BLK_F_WRITE_ZEROES));
        assert_eq!(offer.segments, 2);
        assert_eq!(offer.config[36..], [0; 24]);
    }
}
