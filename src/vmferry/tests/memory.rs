//! A guest with much RAM of which it uses little: what was never touched is not sent.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

#[macro_use]
mod common;

use common::demo::demo;
use vmferry_machine::MachineKind;

on_each_machine!(untouched_ram_is_not_sent);

const MIB: u64 = 1 << 20;
const FILLED: u64 = 64 * MIB;
/// Ledger, payload and boot data, each in huge pages; and what an idle guest writes meanwhile.
const BESIDE: u64 = 16 * MIB;

async fn untouched_ram_is_not_sent(kind: MachineKind) {
    // More than fits below the hole at 3 GiB: there are two regions.
    let ran = demo(&format!(
        "--machine {} --workload idle --mem 4G --fill 0:0:100",
        kind.name()
    ));
    let report = ran.completed();
    let of = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(of("ram_bytes"), 4 << 30);
    let told = of("bytes_memory");
    assert!((FILLED..FILLED + BESIDE).contains(&told), "{report:#}");
    // What is filled does not compress; what lies beside is zero.
    let wire = of("bytes_wire");
    assert!((FILLED..FILLED + BESIDE / 4).contains(&wire), "{report:#}");
    assert!(of("peak_extra_rss_bytes") <= 64 * MIB, "{report:#}");
}
