//! What measures: moves by the demo, compression in them, transports against plain copies, plots
//! for the documentation.

pub mod bars;
pub mod compression;
pub mod cpu;
pub mod demo;
pub mod guest;
pub mod plot;
pub mod qemu;
pub mod transport;
pub mod warm;
