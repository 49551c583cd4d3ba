//! The VM process: one machine, its control socket and its migrations.
