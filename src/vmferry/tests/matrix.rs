//! Every workload × {quic, tcp} × {1, 4} vCPUs × {kvm, process}, through the demo: the guest
//! verifies its memory at the destination, and the report keeps its promises.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use common::demo::demo;
use serde_json::Value;
use vmferry_machine::MachineKind;

/// What a field holds.
#[derive(Clone, Copy, Debug)]
enum Is {
    Text,
    Count,
    Number,
    /// A number, or null where the guest does no work that could be counted.
    Work,
    Object,
    List,
}

use Is::{Count, List, Number, Object, Text, Work};

/// Field names are a promise: they may become more, but none may go.
const REPORT: [(&str, Is); 21] = [
    ("migration_id", Text),
    ("outcome", Text),
    ("transport", Text),
    ("tracker", Text),
    ("codec", Text),
    ("vcpus", Count),
    ("ram_bytes", Count),
    ("total_ms", Number),
    ("blackout_ms", Number),
    ("blackout_breakdown_ms", Object),
    ("blackout_guest_ms", Number),
    ("passes", List),
    ("bytes_memory", Count),
    ("bytes_wire", Count),
    ("bytes_by_codec", Object),
    ("pages_zero", Count),
    ("pages_unchanged", Count),
    ("guest", Object),
    ("peak_extra_rss_bytes", Count),
    ("peak_extra_rss_destination_bytes", Count),
    ("machine", Text),
];
const BREAKDOWN: [&str; 8] = [
    "pause",
    "io_cancel",
    "final_pages",
    "save_state",
    "send_state",
    "restore",
    "handover",
    "resume",
];
const PASS: [(&str, Is); 6] = [
    ("pass", Count),
    ("duration_ms", Number),
    ("pages_considered", Count),
    ("pages_sent", Count),
    ("notifications", Count),
    ("bytes_wire", Count),
];
const GUEST: [(&str, Is); 7] = [
    ("work_rate_before", Work),
    ("work_rate_during", Work),
    ("work_rate_after", Work),
    ("brownout_pct", Work),
    ("brownout_lost_ms", Work),
    ("lost_work_ms", Work),
    ("verify", Text),
];

/// Most memory beyond the guest's RAM, at either side.
const MOST_EXTRA: u64 = 64 << 20;

fn has(value: &Value, fields: &[(&str, Is)], idle: bool) {
    for &(name, is) in fields {
        let field = &value[name];
        let right = match is {
            Text => field.as_str().is_some_and(|text| !text.is_empty()),
            Count => field.is_u64(),
            Number => field.as_f64().is_some_and(|n| n >= 0.0),
            Work => field.as_f64().is_some_and(|n| n >= 0.0) || (idle && field.is_null()),
            Object => field.is_object(),
            List => field.is_array(),
        };
        assert!(right, "{name} is {field}, which is no {is:?}");
    }
}

fn sum(values: &Value, name: &str) -> u64 {
    let values = values.as_array().unwrap();
    values.iter().map(|v| v[name].as_u64().unwrap()).sum()
}

fn check(kind: MachineKind, workload: &str, transport: &str, vcpus: u64) {
    if !common::can_run(kind) {
        return;
    }
    let name = kind.name();
    let ran = demo(&format!(
        "--machine {name} --workload {workload} --transport {transport} --vcpus {vcpus}"
    ));
    let report = ran.completed();
    has(&report, &REPORT, false);
    has(&report["guest"], &GUEST, workload == "idle");
    assert_eq!(report["machine"], name);
    assert_eq!(report["transport"], transport);
    assert_eq!(report["vcpus"], vcpus);
    assert_eq!(report["ram_bytes"], 256u64 << 20);

    let parts = BREAKDOWN.map(|part| {
        let ms = report["blackout_breakdown_ms"][part].as_f64();
        ms.unwrap_or_else(|| panic!("no {part} in the breakdown"))
    });
    let blackout = report["blackout_ms"].as_f64().unwrap();
    let apart = (parts.iter().sum::<f64>() - blackout).abs();
    assert!(apart < 1e-6, "{parts:?} do not sum to {blackout}");

    let passes = &report["passes"];
    for pass in passes.as_array().unwrap() {
        has(pass, &PASS, false);
    }
    let wire = report["bytes_wire"].as_u64().unwrap();
    assert!(wire > 0 && sum(passes, "bytes_wire") == wire, "{report:#}");
    let by_codec = report["bytes_by_codec"].as_object().unwrap().values();
    let encoded: u64 = by_codec.map(|bytes| bytes.as_u64().unwrap()).sum();
    assert!(encoded > 0 && encoded <= wire, "{report:#}");
    // What is considered is sent, or told to be zero, or known to be there already.
    let of = |name: &str| report[name].as_u64().unwrap();
    let told = sum(passes, "pages_sent") + of("pages_zero");
    assert_eq!(told * 4096, of("bytes_memory"), "{report:#}");
    let considered = sum(passes, "pages_considered");
    assert_eq!(considered, told + of("pages_unchanged"), "{report:#}");

    for side in ["peak_extra_rss_bytes", "peak_extra_rss_destination_bytes"] {
        let extra = report[side].as_u64().unwrap();
        assert!(extra <= MOST_EXTRA, "{side} is {extra}");
    }
}

macro_rules! workloads {
    ($kind:ident, $transport:literal, $vcpus:literal: $($name:ident $workload:literal)*) => {
        $(#[test]
        fn $name() {
            crate::check(vmferry_machine::MachineKind::$kind, $workload, $transport, $vcpus);
        })*
    };
}

macro_rules! matrix {
    ($($group:ident: $kind:ident, $transport:literal, $vcpus:literal;)*) => {
        $(mod $group {
            workloads! { $kind, $transport, $vcpus:
                idle "idle"
                dense "dense"
                sparse "sparse"
                readmostly "readmostly"
                rewrite_same "rewrite-same"
            }
        })*
    };
}

matrix! {
    kvm_quic_1_vcpu: Kvm, "quic", 1;
    kvm_quic_4_vcpus: Kvm, "quic", 4;
    kvm_tcp_1_vcpu: Kvm, "tcp", 1;
    kvm_tcp_4_vcpus: Kvm, "tcp", 4;
    process_quic_1_vcpu: Process, "quic", 1;
    process_quic_4_vcpus: Process, "quic", 4;
    process_tcp_1_vcpu: Process, "tcp", 1;
    process_tcp_4_vcpus: Process, "tcp", 4;
}
