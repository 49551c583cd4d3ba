//! Test harness: pair simulator, faulty links, guests.
//!
//! Nothing here is part of the product. [`sim`] runs whole migrations of the protocol core in
//! virtual time; the suites in `tests/` drive it.

pub mod sim;
