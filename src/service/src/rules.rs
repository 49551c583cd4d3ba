//! What names and options may be: for the API, the configuration, the supervisor and the command
//! line alike. Pure.

use std::str::FromStr;

use crate::model::MigrationOptions;

/// Letters of a host's or a machine's name.
const LONGEST_NAME: usize = 63;
/// What [`is_vm_name`] asks for, in words.
pub const VM_NAME_RULE: &str = "1 to 63 lower-case letters, digits and hyphens, no hyphen first";
/// What [`is_host_name`] asks for, in words.
pub const HOST_NAME_RULE: &str =
    "1 to 63 lower-case letters, digits and hyphens, no hyphen at an end";
/// Bytes of a unix socket's path, without the zero after it.
pub const SOCKET_PATH: usize = 107;
/// 1 Tbit/s: bytes per second still fit everywhere.
pub const MOST_MBIT: u64 = 1_000_000;
/// Most MiB that a migration keeps of pages as they were sent.
const MOST_DELTA_MIB: u64 = 65_536;
/// Page streams of a migration.
const STREAMS: (u64, u64) = (1, vmferry_transports::MAX_STREAMS as u64);
/// Passes before the pause.
const PASSES: (u64, u64) = (1, 40);
/// An hour.
const LONGEST_BLACKOUT_MS: f64 = 3_600_000.0;

/// Whether a machine can be called so: [`VM_NAME_RULE`].
#[must_use]
pub fn is_vm_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('-')
}

/// Whether a host can be called so: [`HOST_NAME_RULE`]. Certificates are for such names.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    is_vm_name(name) && !name.ends_with('-')
}

/// What makes no sense in options of a migration: fields, and what is wrong with them.
#[must_use]
pub fn option_problems(options: &MigrationOptions) -> Vec<(&'static str, String)> {
    fn parsed<T: FromStr<Err: ToString>>(text: Option<&String>) -> Option<String> {
        text?.parse::<T>().err().map(|e| e.to_string())
    }
    let tracker = options.tracker.as_ref().filter(|name| *name != "auto");
    let range = |given: Option<u64>, (least, most): (u64, u64)| {
        given
            .filter(|n| !(least..=most).contains(n))
            .map(|n| format!("{n} is not from {least} to {most}"))
    };
    let blackout = options
        .max_blackout_ms
        .filter(|ms| !(ms.is_finite() && *ms > 0.0 && *ms <= LONGEST_BLACKOUT_MS))
        .map(|ms| format!("{ms} is not more than 0, and an hour at most"));
    let found = [
        (
            "transport",
            parsed::<vmferry_transports::TransportKind>(options.transport.as_ref()),
        ),
        ("streams", range(options.streams.map(u64::from), STREAMS)),
        (
            "codec",
            parsed::<vmferry_codecs::CodecChoice>(options.codec.as_ref()),
        ),
        (
            "delta_cache_mib",
            range(options.delta_cache_mib.map(u64::from), (0, MOST_DELTA_MIB)),
        ),
        ("tracker", parsed::<vmferry_tracker::TrackerKind>(tracker)),
        (
            "group",
            parsed::<vmferry_tracker::GroupSize>(options.group.as_ref()),
        ),
        (
            "throttle_pct",
            range(options.throttle_pct.map(u64::from), (0, 100)),
        ),
        ("link_mbit", range(options.link_mbit, (0, MOST_MBIT))),
        ("max_blackout_ms", blackout),
        (
            "min_passes",
            range(options.min_passes.map(u64::from), PASSES),
        ),
    ];
    found
        .into_iter()
        .filter_map(|(field, what)| Some((field, what?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_paths_or_options_are_none() {
        for name in ["", "..", "a/b", "-rf", "A", "a.b", "é", &"a".repeat(64)] {
            assert!(!is_vm_name(name) && !is_host_name(name), "{name}");
        }
        assert!(is_vm_name("web-1") && is_vm_name(&"a".repeat(63)));
        assert!(is_vm_name("web-") && !is_host_name("web-") && is_host_name("0"));
    }

    #[test]
    fn wrong_options_are_named_all_at_once() {
        let options = MigrationOptions {
            transport: Some("pigeon".to_owned()),
            streams: Some(0),
            codec: Some("zstd:99".to_owned()),
            delta_cache_mib: Some(u32::MAX),
            tracker: Some("guess".to_owned()),
            group: Some("3k".to_owned()),
            throttle_pct: Some(101),
            link_mbit: Some(u64::MAX),
            max_blackout_ms: Some(f64::NAN),
            min_passes: Some(0),
        };
        let fields: Vec<_> = option_problems(&options).iter().map(|(f, _)| *f).collect();
        let all = serde_json::to_value(&options).unwrap();
        assert_eq!(fields.len(), all.as_object().unwrap().len(), "{fields:?}");
        assert_eq!(option_problems(&MigrationOptions::default()), []);
    }
}
