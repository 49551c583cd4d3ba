//! Limits of what a request may hold, as the OpenAPI document states them: all that is wrong with
//! one is said at once. Whether a host can do it is for the host to say.

use vmferry_block::DiskSource;
use vmferry_transports::TransportKind;

use super::types::SettleRequest;
use crate::model::{
    BootSpec, Decision, DiskSpecification, DrainRequest, MigrationOptions, MigrationRequest, Offer,
    ReceptionRequest, SettledJobs, VmSpec,
};
use crate::rules::{MOST_MBIT, VM_NAME_RULE, is_vm_name, option_problems};

const MAX_CMDLINE: usize = 2047;

/// Whether an id can be a migration's: 32 lower-case hexadecimal digits.
#[must_use]
pub fn is_migration_id(id: &str) -> bool {
    id.len() == 32 && is_hex(id)
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Most storage jobs that are told of at once.
pub const MAX_SETTLED: usize = 4096;

/// A request that knows its limits.
pub(super) trait Check {
    /// Adds what is wrong, in words that begin with the field.
    fn check(&self, wrong: &mut Vec<String>);
}

/// Notes `field: what` unless it is fine.
fn need(wrong: &mut Vec<String>, fine: bool, field: &str, what: &str) {
    if !fine {
        wrong.push(format!("{field}: {what}"));
    }
}

fn printable(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

fn word(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn path(wrong: &mut Vec<String>, text: &str, field: &str) {
    let fine = text.starts_with('/') && (2..=4095).contains(&text.len()) && printable(text);
    need(wrong, fine, field, "give an absolute path");
}

fn cmdline(wrong: &mut Vec<String>, text: &str, field: &str) {
    let fine = text.len() <= MAX_CMDLINE && printable(text);
    need(
        wrong,
        fine,
        field,
        "give at most 2047 printable ASCII characters",
    );
}

fn traceparent(wrong: &mut Vec<String>, text: Option<&str>) {
    let fine = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.iter().map(|p| p.len()).eq([2, 32, 16, 2]) && parts.iter().all(|p| is_hex(p))
    };
    need(
        wrong,
        text.is_none_or(fine),
        "traceparent",
        "not a W3C trace context: VERSION-TRACE-SPAN-FLAGS in lower-case hexadecimal digits",
    );
}

impl Check for VmSpec {
    fn check(&self, wrong: &mut Vec<String>) {
        need(
            wrong,
            is_vm_name(&self.name),
            "name",
            &format!("give {VM_NAME_RULE}"),
        );
        need(
            wrong,
            ["auto", "kvm", "process"].contains(&self.machine.as_str()),
            "machine",
            "give auto, kvm or process",
        );
        need(
            wrong,
            (2..=16 << 20).contains(&self.ram_mib) && self.ram_mib.is_multiple_of(2),
            "ram_mib",
            "give an even number from 2 to 16777216",
        );
        need(wrong, (1..=8).contains(&self.vcpus), "vcpus", "give 1 to 8");
        match &self.boot {
            BootSpec::Workload { cmdline: line } => cmdline(wrong, line, "boot.workload.cmdline"),
            BootSpec::Kernel {
                kernel,
                initrd,
                cmdline: line,
            } => {
                path(wrong, kernel, "boot.kernel.kernel");
                if let Some(initrd) = initrd {
                    path(wrong, initrd, "boot.kernel.initrd");
                }
                cmdline(wrong, line, "boot.kernel.cmdline");
            }
        }
        need(wrong, self.disks.len() <= 8, "disks", "8 at most");
        for (at, disk) in self.disks.iter().take(8).enumerate() {
            let mut about = Vec::new();
            disk.check(&mut about);
            wrong.extend(about.iter().map(|what| format!("disks[{at}].{what}")));
        }
    }
}

impl Check for DiskSpecification {
    fn check(&self, wrong: &mut Vec<String>) {
        match self.source.parse::<DiskSource>() {
            Err(what) => wrong.push(format!("source: {what}")),
            Ok(DiskSource::File(file)) if !file.is_absolute() => {
                wrong.push("source: give an absolute path after file:".to_owned());
            }
            Ok(_) => need(
                wrong,
                word(&self.source, 4000),
                "source",
                "give at most 4000 printable ASCII characters, without spaces",
            ),
        }
        need(
            wrong,
            self.serial.len() <= 20 && printable(&self.serial),
            "serial",
            "give at most 20 printable ASCII characters",
        );
        let queues = self.queues.is_none_or(|n| (1..=8).contains(&n));
        need(wrong, queues, "queues", "give 1 to 8");
        need(
            wrong,
            self.delay_ms <= 600_000,
            "delay_ms",
            "give at most 600000",
        );
    }
}

fn options(options: &MigrationOptions, wrong: &mut Vec<String>) {
    let found = option_problems(options).into_iter();
    wrong.extend(found.map(|(field, what)| format!("options.{field}: {what}")));
}

impl Check for MigrationRequest {
    fn check(&self, wrong: &mut Vec<String>) {
        need(
            wrong,
            word(&self.to, 512),
            "to",
            "give a peer's name, or the URL of its API",
        );
        options(&self.options, wrong);
        traceparent(wrong, self.traceparent.as_deref());
    }
}

impl Check for DrainRequest {
    fn check(&self, wrong: &mut Vec<String>) {
        need(
            wrong,
            (1..=64).contains(&self.to.len()),
            "to",
            "give 1 to 64 hosts",
        );
        let names = self.to.iter().all(|to| word(to, 512));
        need(
            wrong,
            names,
            "to",
            "give peers' names, or the URLs of their APIs",
        );
        let parallel = self.parallel.is_none_or(|n| (1..=64).contains(&n));
        need(wrong, parallel, "parallel", "give 1 to 64");
        options(&self.options, wrong);
    }
}

impl Check for Offer {
    fn check(&self, wrong: &mut Vec<String>) {
        let mut about = Vec::new();
        self.spec.check(&mut about);
        wrong.extend(about.iter().map(|what| format!("spec.{what}")));
        need(
            wrong,
            self.cpu_features.len() <= 4096,
            "cpu_features",
            "4096 at most",
        );
        let short = self.software.chars().count() <= 256;
        need(wrong, short, "software", "give at most 256 characters");
    }
}

impl Check for ReceptionRequest {
    fn check(&self, wrong: &mut Vec<String>) {
        let mut about = Vec::new();
        self.offer.check(&mut about);
        wrong.extend(about.iter().map(|what| format!("offer.{what}")));
        need(
            wrong,
            is_migration_id(&self.migration),
            "migration",
            "give 32 lower-case hexadecimal digits",
        );
        need(
            wrong,
            word(&self.from, 253),
            "from",
            "give the name of a host",
        );
        if let Err(what) = self.transport.parse::<TransportKind>() {
            wrong.push(format!("transport: {what}"));
        }
        let link = self.link_mbit <= MOST_MBIT;
        need(wrong, link, "link_mbit", "give 0 to 1000000");
        traceparent(wrong, self.traceparent.as_deref());
    }
}

impl Check for SettleRequest {
    fn check(&self, _: &mut Vec<String>) {}
}

impl Check for Decision {
    fn check(&self, _: &mut Vec<String>) {}
}

impl Check for SettledJobs {
    fn check(&self, wrong: &mut Vec<String>) {
        need(
            wrong,
            is_migration_id(&self.migration),
            "migration",
            "give 32 lower-case hexadecimal digits",
        );
        let few = self.jobs.len() <= MAX_SETTLED;
        need(wrong, few, "jobs", "give at most 4096");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let spec: VmSpec = serde_json::from_str(
            r#"{"name":"Web","ram_mib":3,"vcpus":9,"disks":[{"source":"file:x"}]}"#,
        )
        .unwrap();
        let mut wrong = Vec::new();
        spec.check(&mut wrong);
        let fields: Vec<&str> = wrong.iter().filter_map(|w| w.split(':').next()).collect();
        assert_eq!(fields, ["name", "ram_mib", "vcpus", "disks[0].source"]);
    }

    #[test]
    fn a_trace_context_has_four_parts() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (text, fine) in [
            (Some(good), true),
            (None, true),
            (Some("00-x"), false),
            (Some(""), false),
        ] {
            let mut wrong = Vec::new();
            traceparent(&mut wrong, text);
            assert_eq!(wrong.is_empty(), fine, "{text:?}");
        }
    }
}
