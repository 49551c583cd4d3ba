//! What every backend has to do. A factory makes a fresh disk of [`DISK`] zeros each time.

mod cancel;
mod data;
mod refusals;

use vmferry_block::BlockBackend;

use crate::common::Rig;

/// Bytes of the disks that are made.
pub(crate) const DISK: u64 = 8 << 20;

/// A disk, and what it needs beside it.
pub(crate) struct Made {
    pub(crate) disk: Box<dyn BlockBackend>,
    /// Dropped after the disk.
    pub(crate) keep: Box<dyn std::any::Any>,
}

/// Makes a disk that can be written, or that cannot.
pub(crate) type Factory<'a> = &'a dyn Fn(ReadOnly) -> Made;

type Test = fn(&mut Rig);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadOnly(pub(crate) bool);

/// All of it.
pub(crate) fn run(make: Factory<'_>) {
    let tests: [(&str, Test); 11] = [
        ("geometry", data::geometry),
        ("round trip", data::round_trip),
        ("unaligned memory", data::unaligned_memory),
        ("zeros", data::zeros),
        ("flush", data::flush),
        ("many in flight", data::many_in_flight),
        ("dirty pages", data::reads_are_noted),
        ("readiness", data::readiness),
        ("cancel", cancel::each_ends_once),
        ("cancel of nothing", cancel::of_what_is_not_there),
        ("nonsense", refusals::nonsense),
    ];
    for (name, test) in tests {
        println!("contract: {name}");
        let Made { disk, keep } = make(ReadOnly(false));
        test(&mut Rig::new(disk));
        drop(keep);
    }
    println!("contract: read-only");
    let Made { disk, keep } = make(ReadOnly(true));
    refusals::read_only(&mut Rig::new(disk));
    drop(keep);
    println!("contract: drop with operations in flight");
    let Made { disk, keep } = make(ReadOnly(false));
    cancel::drop_in_flight(Rig::new(disk));
    drop(keep);
}
