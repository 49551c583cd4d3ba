//! Test harness: pair simulator, faulty links, guests.
//!
//! Nothing here is part of the product. [`sim`] runs whole migrations of the protocol core in
//! virtual time; [`engine`] runs the real engine with real machines over transports, journals and
//! machines that fail on demand; [`crash`] kills real VM processes at named points of a switchover;
//! [`decorated`] puts something around a machine; [`hosts`] are host services as processes of the
//! real binary; [`nbdkit`] is a real server of disks; [`corpus`] makes pages such as guests have;
//! [`recording`] is what real guests wrote. The suites in `tests/` drive them.

pub mod corpus;
pub mod crash;
pub mod decorated;
pub mod engine;
pub mod hosts;
pub mod nbdkit;
pub mod recording;
pub mod sim;
