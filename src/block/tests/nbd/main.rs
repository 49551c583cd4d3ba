//! The NBD client against scripted bytes, scripted servers, and real ones.

mod rig;
mod servers;

mod nbdkit;
