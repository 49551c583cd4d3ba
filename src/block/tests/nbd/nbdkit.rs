//! `nbdkit`.

use vmferry_block::Extent;

use crate::rig::Disk;
use crate::servers::{Place, nbdkit};

#[test]
fn what_is_written_is_read() {
    let place = Place::new();
    let _server = nbdkit(&place, ["memory", "64M"]);
    let mut disk = Disk::open(&place.uri(""));
    assert_eq!(disk.geometry().bytes, 64 << 20);
    let extents = [(0, 512), (4096, 65536), (1 << 20, 20 << 20)];
    let extents = extents.map(|(offset, len)| Extent::new(offset, len));
    let writes = extents.map(|extent| disk.write(extent, 1));
    for id in writes {
        disk.done(id);
    }
    let flush = disk.flush();
    disk.done(flush);
    for extent in extents {
        disk.check(extent, 1);
    }
    disk.close();
}
