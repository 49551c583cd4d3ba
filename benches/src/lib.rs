//! What measures: moves by the demo, transports against plain copies, plots for the documentation.

pub mod demo;
pub mod plot;
pub mod transport;
