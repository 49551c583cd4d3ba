//! What the end-to-end suites share: where they can run, the command line as a user calls it, and
//! guests to boot. VM processes to talk to are in [`lab`].
// Each suite uses a part of it, and helpers of tests fail by unwrapping, as tests do.
#![allow(dead_code, unused_macros, clippy::unwrap_used)]

pub(crate) mod demo;
pub(crate) mod lab;
pub(crate) mod nobody;

use std::fs::OpenOptions;
use std::future::Future;
use std::time::Duration;

use vmferry_machine::{Boot, Console, MachineConfig, MachineKind};

/// The binary under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_vmferry");

/// Nothing here takes nearly as long: whatever does hangs.
pub(crate) const GUARD: Duration = Duration::from_secs(300);

/// Whether KVM can be used.
pub(crate) fn kvm_usable() -> bool {
    let open = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    open.is_ok()
}

/// The same, for a test that is left out where it cannot: that is said.
pub(crate) fn kvm() -> bool {
    let usable = kvm_usable();
    if !usable {
        println!("SKIPPED (no /dev/kvm)");
    }
    usable
}

/// Whether this host can run a machine of that kind.
pub(crate) fn can_run(kind: MachineKind) -> bool {
    kind == MachineKind::Process || kvm()
}

/// Runs `test` for a kind of machine, where this host can.
pub(crate) fn on<F: Future<Output = ()>>(kind: MachineKind, test: impl FnOnce(MachineKind) -> F) {
    if can_run(kind) {
        run(test(kind));
    }
}

/// Runs a test that waits for things.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(GUARD, test).await.expect("it hangs");
    });
}

/// Each test, an async function of the kind of machine, once for every kind.
macro_rules! on_each_machine {
    ($($test:ident),* $(,)?) => {
        mod kvm_machine {
            $(#[test]
            fn $test() {
                crate::common::on(vmferry_machine::MachineKind::Kvm, super::$test);
            })*
        }
        mod process_machine {
            $(#[test]
            fn $test() {
                crate::common::on(vmferry_machine::MachineKind::Process, super::$test);
            })*
        }
    };
}

/// A machine of 64 MiB with the built-in workload; `cmdline` says what it does.
pub(crate) fn guest(kind: MachineKind, cmdline: &str) -> MachineConfig {
    MachineConfig {
        kind,
        ram_bytes: 64 << 20,
        vcpus: 1,
        boot: Boot::Workload {
            cmdline: cmdline.to_owned(),
        },
        serial: Console::None,
        debugcon: Console::None,
        dirty_rings: false,
        disks: Vec::new(),
    }
}

/// A guest that keeps a link of [`SLOW_MBIT`] busy: a second and a half for its filled RAM, none of
/// which compresses, and over half a second for what it changes meanwhile.
pub(crate) fn busy_guest(kind: MachineKind) -> MachineConfig {
    guest(
        kind,
        "workload=dense ws-mib=2 fill-mib=4 rate=100000 fill=0:0:100 seed=7",
    )
}

/// See [`busy_guest`].
pub(crate) const SLOW_MBIT: u64 = 20;
