//! Test harness: pair simulator, faulty links, guests.
