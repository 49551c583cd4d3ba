//! What every sort of machine that runs the built-in workload has to know of it: its command line,
//! and whether its memory fits.

use vmferry_guest::abi;
use vmferry_guest::params::{PAGE, Params};
use vmferry_memory::{GuestRam, MMIO_HOLE_START};
use vmferry_protocol::PageRange;

use crate::MachineError;
use crate::config::MAX_VCPUS;

/// `cmdline` with what the machine has to add; `tsc_khz` is the frequency of the clock that the
/// workload reads.
pub(crate) fn command_line(cmdline: &str, vcpus: u32, tsc_khz: u64) -> String {
    // The machine's own words come last: they win.
    format!("{cmdline} vcpus={vcpus} tsc-khz={tsc_khz}")
}

/// Whether a machine can have so many vCPUs.
///
/// # Errors
/// [`MachineError::Config`].
pub(crate) fn check_vcpus(vcpus: u32) -> Result<(), MachineError> {
    if (1..=MAX_VCPUS.min(abi::MAX_VCPUS)).contains(&vcpus) {
        return Ok(());
    }
    Err(MachineError::Config(format!(
        "{vcpus} vCPUs: give 1 to {MAX_VCPUS}"
    )))
}

/// Host address of the workload's memory, which lies in `ram` with all its pages.
///
/// # Errors
/// [`MachineError::Config`] where RAM is too small, with what to do.
pub(crate) fn find(ram: &GuestRam, params: &Params) -> Result<usize, MachineError> {
    let pages = params.arena_pages();
    let arena = PageRange::new(abi::ARENA_GPA / PAGE, pages);
    ram.hva(arena).map_err(|_| {
        let needed = abi::ARENA_GPA + pages * PAGE;
        let needed_mib = needed.div_ceil(2 << 20) * 2;
        MachineError::Config(if needed > MMIO_HOLE_START {
            format!(
                "the workload needs {needed_mib} MiB of RAM below the device hole, where there \
                 are {} MiB at most: lower fill-mib=, ws-mib= or disk-mib=",
                MMIO_HOLE_START >> 20
            )
        } else {
            format!(
                "the workload needs {needed_mib} MiB of RAM: give the machine that much, or lower \
                 fill-mib=, ws-mib= or disk-mib="
            )
        })
    })
}
