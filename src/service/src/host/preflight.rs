//! What stands against a migration, all of it at once, and what it would take. Pure: the facts are
//! gathered elsewhere.

use crate::model::{Limits, Offer, Problem};

/// What the destination knows of itself and of what it would receive.
#[derive(Clone, Debug)]
pub(super) struct Here {
    /// Its name.
    pub(super) host: String,
    /// What has the VM's name here already.
    pub(super) name_taken: Option<String>,
    /// VMs here, and the RAM of all of them in MiB.
    pub(super) vms: u32,
    pub(super) ram_mib: u64,
    /// Memory available in MiB.
    pub(super) available_mib: u64,
    pub(super) limits: Limits,
    /// Names of the processor features that KVM guests may see here, or why there can be none.
    pub(super) kvm: Result<Vec<String>, String>,
    /// Versions of the protocol.
    pub(super) protocol: (u16, u16),
    /// Disks that cannot be opened here, and why.
    pub(super) disks: Vec<String>,
    /// Files that cannot be read here.
    pub(super) files: Vec<String>,
    /// What is wrong with the certificate.
    pub(super) certificate: Option<String>,
    /// Why nothing can listen on the address for migrations.
    pub(super) listen: Option<String>,
    /// What is wrong with the description.
    pub(super) spec: Option<String>,
}

impl Default for Here {
    fn default() -> Self {
        Self {
            host: String::new(),
            name_taken: None,
            vms: 0,
            ram_mib: 0,
            available_mib: 0,
            limits: Limits::default(),
            kvm: Ok(Vec::new()),
            protocol: (0, 0),
            disks: Vec::new(),
            files: Vec::new(),
            certificate: None,
            listen: None,
            spec: None,
        }
    }
}

/// What the source knows.
#[derive(Clone, Debug, Default)]
pub(super) struct There {
    /// Why the machine cannot be moved in the state that it is in.
    pub(super) state: Option<String>,
    /// Why its disks cannot be used from another host.
    pub(super) disks: Option<String>,
    /// What is wrong with the certificate.
    pub(super) certificate: Option<String>,
    /// Why the other host cannot be asked.
    pub(super) peer: Option<String>,
}

fn problem(area: &str, what: impl Into<String>, todo: impl Into<String>) -> Problem {
    Problem {
        area: area.to_owned(),
        what: what.into(),
        todo: todo.into(),
    }
}

/// What stands against it at the source.
pub(super) fn at_source(there: &There) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(what) = &there.state {
        let todo = "start or resume the VM, or wait for what is under way";
        found.push(problem("state", what, todo));
    }
    if let Some(what) = &there.disks {
        let todo = "wait until it is settled, or move the disk's content to storage that both \
                    hosts can use";
        found.push(problem("disk", what, todo));
    }
    if let Some(what) = &there.certificate {
        let todo = "give this host a certificate of the authority that all hosts trust";
        found.push(problem("certificate", what, todo));
    }
    if let Some(what) = &there.peer {
        let todo =
            "see that the host service runs there, and that its API can be reached from here";
        found.push(problem("network", what, todo));
    }
    found
}

/// What stands against it at the destination.
pub(super) fn at_destination(here: &Here, offer: &Offer) -> Vec<Problem> {
    let (host, spec) = (&here.host, &offer.spec);
    let mut found = Vec::new();
    if let Some(what) = &here.spec {
        let todo = "both hosts need versions of vmferry that understand the same descriptions";
        found.push(problem("version", what, todo));
    }
    let ((oldest, newest), (from, to)) = (offer.protocol, here.protocol);
    if newest < from || to < oldest {
        found.push(problem(
            "version",
            format!(
                "{} speaks the versions {oldest} to {newest} of the protocol, {host} {from} to {to}",
                offer.software
            ),
            "bring the older host up to the newer one's version",
        ));
    }
    if let Some(what) = &here.name_taken {
        found.push(problem(
            "state",
            format!("{host} has a VM called {} already: {what}", spec.name),
            "delete it there, or wait until it is gone",
        ));
    }
    limits(here, spec.ram_mib, &mut found);
    if spec.machine == "kvm" {
        processor(here, &offer.cpu_features, &mut found);
    }
    for what in &here.disks {
        let todo =
            format!("see that {host} reaches the storage, and that nobody else has the disk");
        found.push(problem("disk", format!("on {host}: {what}"), todo));
    }
    for what in &here.files {
        let todo = format!("copy it to {host}: the VM could not be booted again there");
        found.push(problem("disk", format!("on {host}: {what}"), todo));
    }
    if let Some(what) = &here.certificate {
        let todo = format!("give {host} a certificate of the authority that all hosts trust");
        found.push(problem("certificate", format!("on {host}: {what}"), todo));
    }
    if let Some(what) = &here.listen {
        let todo = format!("see to the address for migrations in {host}'s configuration");
        found.push(problem("network", format!("on {host}: {what}"), todo));
    }
    found
}

/// Whether the host has room for a VM of so much RAM.
pub(super) fn limits(here: &Here, ram_mib: u64, found: &mut Vec<Problem>) {
    let (host, limits) = (&here.host, &here.limits);
    if here.vms >= limits.vms {
        found.push(problem(
            "limit",
            format!("{host} has {} VMs, and may have {}", here.vms, limits.vms),
            "raise its limit of VMs, or delete one",
        ));
    }
    let sum = here.ram_mib.saturating_add(ram_mib);
    if limits.vm_ram_mib != 0 && sum > limits.vm_ram_mib {
        found.push(problem(
            "limit",
            format!(
                "the VMs of {host} would have {sum} MiB of RAM, and may have {}",
                limits.vm_ram_mib
            ),
            "raise its limit of RAM for VMs, or stop one",
        ));
    }
    if ram_mib > here.available_mib {
        found.push(problem(
            "memory",
            format!(
                "the VM has {ram_mib} MiB of RAM, and {host} has {} MiB available",
                here.available_mib
            ),
            "free memory there, or take a larger host",
        ));
    }
}

fn processor(here: &Here, wanted: &[String], found: &mut Vec<Problem>) {
    let host = &here.host;
    let features = match &here.kvm {
        Ok(features) => features,
        Err(why) => {
            let todo = "a KVM machine can go only to a host with KVM";
            found.push(problem("cpu", format!("{host} has no KVM: {why}"), todo));
            return;
        }
    };
    let lacks = |f: &&String| !features.contains(f);
    let missing: Vec<&str> = wanted.iter().filter(lacks).map(String::as_str).collect();
    if !missing.is_empty() {
        found.push(problem(
            "cpu",
            format!(
                "the guest has seen processor features that {host} lacks: {}",
                missing.join(", ")
            ),
            "take a host with a processor that has them",
        ));
    }
}

/// All problems in a line.
pub(super) fn in_a_line(problems: &[Problem]) -> String {
    let words = |p: &Problem| format!("{} ({})", p.what, p.todo);
    problems.iter().map(words).collect::<Vec<_>>().join("; ")
}

/// What a migration would take.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prediction {
    pub(super) total_ms: Option<f64>,
    pub(super) blackout_ms: Option<f64>,
    pub(super) assumptions: Vec<String>,
}

/// Share of the memory that is taken to be left for the blackout.
const LEFT: f64 = 0.01;
/// Pausing, saving and setting state, and what the journals of both sides need, in milliseconds.
const FIXED_MS: f64 = 15.0;
/// Round trips between the pause and the resumption.
const ROUND_TRIPS: f64 = 3.0;

/// Predicts from the RAM that has something in it, in bytes, the measured throughput and the limit
/// in Mbit/s (0: none), and a round trip in milliseconds.
pub(super) fn predict(
    populated: u64,
    measured_mbit: Option<f64>,
    limit_mbit: u64,
    round_trip_ms: Option<f64>,
) -> Prediction {
    let mut assumptions = vec![format!(
        "{} MiB of RAM hold something; what was never touched does not travel",
        populated >> 20
    )];
    let limit = (limit_mbit != 0).then_some(limit_mbit as f64);
    let measured = measured_mbit.filter(|mbit| *mbit > 0.0);
    let mbit = match (measured, limit) {
        (Some(measured), Some(limit)) => measured.min(limit),
        (Some(mbit), None) | (None, Some(mbit)) => mbit,
        (None, None) => {
            assumptions.push(
                "the throughput between the hosts was not measured, and there is no limit: the \
                 time cannot be told"
                    .to_owned(),
            );
            return Prediction {
                assumptions,
                ..Prediction::default()
            };
        }
    };
    assumptions.push(match measured {
        Some(_) if limit.is_some_and(|limit| limit <= mbit) => {
            format!("the link is limited to {mbit:.0} Mbit/s, which is less than was measured")
        }
        Some(_) => format!("{mbit:.0} Mbit/s between the hosts, as just measured"),
        None => format!("the link carries its limit of {mbit:.0} Mbit/s; it was not measured"),
    });
    assumptions.push(
        "each page travels once and is not compressed: zero pages and compression make it \
         shorter, memory that changes meanwhile makes it longer"
            .to_owned(),
    );
    assumptions.push(format!(
        "in the blackout {:.0} % of that memory is sent again; pause, state and journals take \
         {FIXED_MS} ms",
        LEFT * 100.0
    ));
    let round_trips = match round_trip_ms {
        Some(ms) => {
            assumptions.push(format!("{ROUND_TRIPS} round trips of {ms:.1} ms"));
            ms * ROUND_TRIPS
        }
        None => 0.0,
    };
    let send_ms = populated as f64 * 8.0 / (mbit * 1e6) * 1e3;
    let blackout = FIXED_MS + round_trips + send_ms * LEFT;
    Prediction {
        total_ms: Some(send_ms + blackout),
        blackout_ms: Some(blackout),
        assumptions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmSpec;

    fn offer() -> Offer {
        let mut spec: VmSpec =
            serde_json::from_str(r#"{"name": "web", "ram_mib": 512, "machine": "kvm"}"#).unwrap();
        spec.vcpus = 1;
        Offer {
            spec,
            cpu_features: vec!["avx2".to_owned(), "sse2".to_owned()],
            software: "vmferry 9".to_owned(),
            protocol: (3, 4),
        }
    }

    fn good() -> Here {
        Here {
            host: "b".to_owned(),
            available_mib: 4096,
            kvm: Ok(vec!["avx2".to_owned(), "sse2".to_owned(), "x".to_owned()]),
            protocol: (1, 3),
            ..Here::default()
        }
    }

    #[test]
    fn nothing_stands_against_what_fits() {
        assert_eq!(at_destination(&good(), &offer()), []);
        assert_eq!(at_source(&There::default()), []);
    }

    #[test]
    fn all_problems_come_at_once_each_with_its_area_and_what_to_do() {
        let here = Here {
            name_taken: Some("it is stopped".to_owned()),
            vms: 256,
            ram_mib: 600,
            available_mib: 100,
            limits: Limits {
                vm_ram_mib: 1000,
                ..Limits::default()
            },
            kvm: Ok(vec!["sse2".to_owned()]),
            protocol: (1, 2),
            disks: vec!["disk 'file:/d': it is not there".to_owned()],
            files: vec!["kernel '/k': it is not there".to_owned()],
            certificate: Some("it has run out".to_owned()),
            listen: Some("the address is not this host's".to_owned()),
            ..good()
        };
        let found = at_destination(&here, &offer());
        let areas: Vec<&str> = found.iter().map(|p| p.area.as_str()).collect();
        assert_eq!(
            areas,
            [
                "version",
                "state",
                "limit",
                "limit",
                "memory",
                "cpu",
                "disk",
                "disk",
                "certificate",
                "network"
            ]
        );
        assert!(
            found
                .iter()
                .all(|p| !p.what.is_empty() && !p.todo.is_empty())
        );
        let line = in_a_line(&found);
        assert!(line.contains("lacks: avx2 (take"), "{line}");
    }

    #[test]
    fn a_kvm_machine_needs_kvm_and_a_process_machine_does_not() {
        let here = Here {
            kvm: Err("there is none".to_owned()),
            ..good()
        };
        let found = at_destination(&here, &offer());
        assert!(found[0].what.contains("there is none"));
        let mut process = offer();
        process.spec.machine = "process".to_owned();
        assert_eq!(at_destination(&here, &process), []);
    }

    #[test]
    fn the_source_has_problems_of_its_own() {
        let there = There {
            state: Some("it is stopped".to_owned()),
            disks: Some("it is in use".to_owned()),
            certificate: Some("it is not PEM".to_owned()),
            peer: Some("refused".to_owned()),
        };
        let areas: Vec<String> = at_source(&there).into_iter().map(|p| p.area).collect();
        assert_eq!(areas, ["state", "disk", "certificate", "network"]);
    }

    #[test]
    fn predictions_follow_from_throughput_and_say_what_they_rest_on() {
        // 100 MB at 800 Mbit/s is a second.
        let p = predict(100_000_000, Some(800.0), 0, Some(1.0));
        assert!((p.blackout_ms.unwrap() - 28.0).abs() < 1e-6, "{p:?}");
        assert!((p.total_ms.unwrap() - 1028.0).abs() < 1e-6, "{p:?}");
        let limited = predict(100_000_000, Some(800.0), 80, None);
        assert!(limited.total_ms.unwrap() > 10_000.0);
        assert!(limited.assumptions.concat().contains("limited to 80"));
        let unknown = predict(100_000_000, None, 0, None);
        assert_eq!(unknown.total_ms, None);
        assert!(unknown.assumptions.concat().contains("not measured"));
        assert!(predict(1 << 20, None, 8, None).total_ms.is_some());
    }
}
