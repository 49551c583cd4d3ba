//! The migration engine: actors that drive the protocol core.
