//! The durable journal of ownership records.
