//! Things that a host may tell. Made through JSON, so that fields with defaults may be added.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmferry_engine::report::MigrationReport;
use vmferry_service::model::{Drain, HostInfo, Migration, ServiceEvent, Vm};

/// The host's clock in all tests: 2026-05-04 10:30:00 UTC, in milliseconds.
pub(crate) const NOW: u64 = 1_777_890_600_000;

fn made<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("as the model says")
}

pub(crate) fn host() -> HostInfo {
    made(json!({
        "name": "host-a", "software": "vmferry 0.1.0", "protocol": [3, 4], "kvm_problem": null,
        "cpu_features": ["avx2"], "memory_mib": 262_144, "available_mib": 121_000,
        "processors": 32, "vms": 6, "migrations_running": 2, "migrations_queued": 1,
        "limits": {"outgoing": 4, "incoming": 4, "link_mbit": 10_000, "compressors": 16,
                   "vms": 64, "vm_ram_mib": 196_608},
        "peers": {"host-b": "https://host-b:7443/", "host-c": "https://host-c:7443/"},
        "now_ms": NOW,
    }))
}

pub(crate) fn vm(name: &str, state: &str, detail: Option<&str>, ram_mib: u64) -> Vm {
    made(json!({
        "name": name, "state": state, "detail": detail, "machine": "kvm", "pid": 4211,
        "migration": null,
        "spec": {
            "name": name, "machine": "auto", "ram_mib": ram_mib, "vcpus": 2 + ram_mib / 8192,
            "disks": [{"source": format!("nbd://storage:10809/{name}")},
                      {"source": "file:/srv/images/tools.img", "read_only": true}],
        },
    }))
}

/// An id that is told from others by `n`.
pub(crate) fn id(n: u64) -> String {
    format!("{n:032x}")
}

/// A migration that is over, `n` half minutes ago.
pub(crate) fn past(n: u64, vm: &str, state: &str, reason: Option<&str>) -> Migration {
    let completed = state == "completed";
    let blackout = completed.then_some(7.87 + (n * 37 % 11) as f64);
    made(json!({
        "id": id(n), "vm": vm, "direction": "outgoing", "peer": "host-b", "state": state,
        "reason": reason, "asked_ms": NOW - 30_000 * n - 9_000, "ended_ms": NOW - 30_000 * n,
        "progress": null, "blackout_ms": blackout, "total_ms": 8_400.0 - n as f64,
        "traceparent": null,
    }))
}

/// A migration under way, in pass `pass` of a guest that writes less and less. The first pass has
/// 524,288 pages.
pub(crate) fn live(
    n: u64,
    vm: &str,
    direction: &str,
    pass: u32,
    bytes_per_second: f64,
) -> Migration {
    let dirtied = |pass: u32| 524_288_u64 >> (2 * (pass - 1)).min(20);
    let passes: Vec<_> = (1..=pass)
        .map(|p| {
            let sent = dirtied(p) * if p == pass { 4 } else { 9 } / 10;
            json!({"pass": p, "pages_dirtied": dirtied(p), "pages_sent": sent})
        })
        .collect();
    let progress = (direction == "outgoing").then(|| {
        json!({
            "phase": "pre-copy", "pass": pass, "pages_left": dirtied(pass) * 6 / 10,
            "pages_total": dirtied(pass), "bytes_per_second": bytes_per_second,
            "bytes_wire": 812_000_000_u64 + u64::from(pass) * 90_000_000,
            "predicted_blackout_ms": 48.0 / f64::from(pass), "jobs_unsettled": 0,
            "stall_ms": 3.1 * f64::from(pass), "run_delay_ms": 7.25 * f64::from(pass),
            "passes": passes,
            "bytes_by_codec": {"lz4": 512_000_000, "zstd:1": 231_000_000, "raw": 69_000_000},
        })
    });
    made(json!({
        "id": id(n), "vm": vm, "direction": direction, "peer": "host-b", "state": "running",
        "reason": null, "asked_ms": NOW - 14_000, "ended_ms": null, "progress": progress,
        "blackout_ms": null, "total_ms": null, "traceparent": null,
    }))
}

pub(crate) fn queued(n: u64, vm: &str) -> Migration {
    let mut migration = live(n, vm, "incoming", 1, 0.0);
    migration.state = made(json!("queued"));
    migration.direction = made(json!("outgoing"));
    migration
}

/// The report of [`past`]'s migration; `reason` is in words of the other side.
pub(crate) fn report(n: u64) -> MigrationReport {
    let f = (n % 7) as f64 / 4.0;
    let pass = |pass: u64, ms: f64, considered: u64, sent: u64, last: bool| {
        json!({
            "pass": pass, "duration_ms": ms, "pages_considered": considered, "pages_sent": sent,
            "pages_unchanged": considered - sent, "pages_deferred": 0, "notifications": 20 * pass,
            "bytes_wire": sent * 1500, "final": last,
        })
    };
    let decision = |after: u64, what: &str, blackout: f64| {
        json!({
            "after_pass": after, "decision": what, "blackout_ms": blackout,
            "saved_ms": blackout / 2.0, "cost_ms": 4.0,
        })
    };
    made(json!({
        "migration_id": id(n), "outcome": "completed", "reason": null, "machine": "kvm",
        "transport": "quic", "streams": 4, "tracker": "wp-group", "codec": "auto", "vcpus": 4,
        "ram_bytes": 2_147_483_648_u64, "total_ms": 8_400.0, "blackout_ms": 7.87 + f,
        "blackout_breakdown_ms": {
            "pause": 0.31, "io_cancel": 0.52, "final_pages": 2.90 + f, "save_state": 0.44,
            "send_state": 0.12, "restore": 1.18, "handover": 2.02, "resume": 0.38,
        },
        "blackout_guest_ms": 9.4, "blackout_predicted_ms": 8.6,
        "passes": [pass(1, 6_100.0, 524_288, 431_004, false), pass(2, 1_300.0, 91_020, 60_200, false),
                   pass(3, 310.0, 20_400, 9_120, false), pass(4, 3.2, 1_804, 1_212, true)],
        "bytes_memory": 2_060_000_000_u64, "bytes_wire": 752_000_000,
        "bytes_by_codec": {"lz4": 420_000_000, "zstd:1": 262_000_000, "raw": 70_000_000},
        "pages_zero": 93_284, "pages_unchanged": 42_000,
        "decisions": [decision(1, "continue", 310.0), decision(2, "continue", 61.0),
                      decision(3, "switch-over", 8.6)],
        "notifications": {"answered": 120, "pages_released": 61_440, "stall_ms": 14.2,
                          "longest_stall_ms": 1.4, "throttled_ms": 0.0},
        "vcpu_run_delay_ms": 4.0,
        "guest": {"work_rate_before": 2.1e6, "work_rate_during": 1.9e6, "work_rate_after": 2.1e6,
                  "brownout_pct": 9.5, "brownout_lost_ms": 700.0, "lost_work_ms": 710.0,
                  "verify": "OK"},
        "io": {"in_flight_at_pause": 32, "ended_in_pause": 9, "cancelled": 17, "unsettled": 6,
               "reissued": 23, "fence_wait_ms": 31.0, "first_after_resume_ms": 1.9,
               "verify_unsettled": "OK", "journal_flush_ms": 0.8, "settled_ms": 33.0,
               "lost": 0, "duplicated": 0},
        "peak_extra_rss_bytes": 31_000_000, "peak_extra_rss_destination_bytes": 18_000_000,
    }))
}

const HOSTS: [&str; 2] = ["host-b", "host-c"];

/// A drain of so many machines, of which the first `done` have moved.
pub(crate) fn drain(all: usize, done: usize) -> Drain {
    let items: Vec<_> = (0..all)
        .map(|i| {
            let over = i < done;
            let state = match i {
                2 if over => "failed",
                _ if over => "completed",
                _ if i < done + 2 => "running",
                _ => "queued",
            };
            json!({
                "vm": format!("shop-{i}"), "to": HOSTS[i % 2], "migration": null,
                "state": state, "blackout_ms": (state == "completed").then_some(6.5 + i as f64),
                "total_ms": over.then_some(4_100.0 + 13.0 * i as f64),
                "reason": (state == "failed").then_some("the destination has too little memory: 4096 MiB are asked for, 1020 MiB available; stop a machine there or choose another host"),
            })
        })
        .collect();
    made(json!({
        "request": {"to": HOSTS, "parallel": 2}, "cancelled": false,
        "over": done == all, "items": items,
    }))
}

/// A busy host.
pub(crate) fn busy() -> Vec<ServiceEvent> {
    let mut all = vec![
        ServiceEvent::Vm(vm("web-1", "running", None, 2048)),
        ServiceEvent::Vm(vm("web-2", "running", None, 2048)),
        ServiceEvent::Vm(vm("db-1", "running", None, 16_384)),
        ServiceEvent::Vm(vm("db-2", "arriving", None, 16_384)),
        ServiceEvent::Vm(vm("build-7", "paused", None, 4096)),
        ServiceEvent::Vm(vm(
            "mail-1",
            "crashed",
            Some("its process was killed by signal 9"),
            1024,
        )),
        ServiceEvent::Migration(live(900, "web-1", "outgoing", 4, 640e6)),
        ServiceEvent::Migration(live(901, "db-2", "incoming", 1, 0.0)),
        ServiceEvent::Migration(live(903, "db-1", "outgoing", 1, 410e6)),
        ServiceEvent::Migration(queued(902, "web-2")),
        ServiceEvent::Drain(drain(6, 3)),
    ];
    let reason = "the link was cut for 30 s in pass 2: the guest runs on at host-a; look at the network between the hosts, then start it again";
    for n in 1..=14 {
        let name = ["cache-1", "web-3", "auth-2", "queue-1"][n as usize % 4];
        all.push(ServiceEvent::Migration(match n {
            4 => past(n, name, "failed", Some(reason)),
            9 => past(n, name, "cancelled", Some("cancelled by an operator")),
            _ => past(n, name, "completed", None),
        }));
    }
    all
}
